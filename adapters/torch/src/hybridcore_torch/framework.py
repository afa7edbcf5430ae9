"""What the entry point ``torch`` of the group ``hybridcore.adapters`` loads to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hybridcore.errors import TaskError
from hybridcore.protocols import API_VERSION, OptimizerSpec, Problem, TaskRun
from hybridcore.tasks.batches import ConvertedBatches
from hybridcore.tasks.quadratic import noisy_batches

if TYPE_CHECKING:
    pass

__all__ = ["FRAMEWORK", "TorchFramework"]


class TorchFramework:
    """PyTorch, seen from the engine; nothing of it is imported before it is needed."""

    name = "torch"
    api_version = API_VERSION

    def owns(self, model: object) -> bool:
        """Whether `model` is a `torch.nn.Module`; looks at its class only, and imports nothing."""
        return any(
            kind.__name__ == "Module" and kind.__module__ == "torch.nn.modules.module"
            for kind in type(model).__mro__
        )

    def build(
        self,
        problem: Problem,
        device: str,
        make_optimizer: Callable[[list[Any], OptimizerSpec], Any] | None = None,
    ) -> TaskRun:
        """Model, optimizer, schedule and data of a built-in problem.

        Args:
            problem: The problem.
            device: Device name.
            make_optimizer: Makes another optimizer than the problem's own from the trainable parameters and
                the problem's specification, whose schedule it still gets.

        Raises:
            TaskError: The model, the optimizer, the schedule or the device is unknown.
        """
        import torch

        from hybridcore_torch.adapter import TorchAdapter
        from hybridcore_torch.batches import to_device
        from hybridcore_torch.models import build_model
        from hybridcore_torch.optimizers import build_optimizer, build_schedule

        try:
            place = torch.device(device)
            torch.empty(0, device=place)
        except (RuntimeError, AssertionError) as error:
            raise TaskError(
                "PyTorch cannot use this device",
                where="run.device",
                got=device,
                expected=f"one of {', '.join(self.devices())}",
                fix='set run.device = "cpu"',
            ) from error
        built = build_model(problem, place)
        trainable = [p for p in built.model.parameters() if p.requires_grad]
        optimizer = (make_optimizer or build_optimizer)(trainable, problem.optimizer)
        schedule = build_schedule(optimizer, problem.optimizer)
        adapter = TorchAdapter(
            built.model, optimizer, built.loss_fn, scheduler=schedule, residual_fn=built.residual_fn
        )
        batches = problem.batches()
        if problem.model == "quadratic":
            batches = noisy_batches(problem.shape, batches)
        validation = [to_device(batch, place) for batch in problem.validation]
        return TaskRun(
            adapter=adapter,
            batches=ConvertedBatches(batches, partial(to_device, device=place)),
            probes=tuple(to_device(batch, place) for batch in problem.probes),
            evaluate=lambda: built.evaluate(built.model, validation),
            schedule_step=schedule.step if schedule is not None else None,
        )

    def versions(self) -> dict[str, str]:
        """Versions of PyTorch and, where it was built with one, of CUDA."""
        import torch

        found = {"torch": str(torch.__version__)}
        if torch.version.cuda is not None:
            found["cuda"] = torch.version.cuda
        return found

    def devices(self) -> tuple[str, ...]:
        """``"cpu"`` and every CUDA device that answers."""
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return ("cpu", *(f"cuda:{i}" for i in range(count)))


FRAMEWORK = TorchFramework()
"""The framework object that `hybridcore` discovers."""
