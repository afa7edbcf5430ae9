"""What the entry point ``torch`` of the group ``hybridcore.adapters`` loads to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hybridcore.errors import TaskError
from hybridcore.protocols import API_VERSION, Problem, TaskRun

if TYPE_CHECKING:
    import torch

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

    def build(self, problem: Problem, device: str) -> TaskRun:
        """Model, optimizer, schedule and data of a built-in problem.

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
        model, loss_fn, evaluate_batch = build_model(problem)
        model.to(place)
        optimizer = build_optimizer(model.parameters(), problem.optimizer)
        schedule = build_schedule(optimizer, problem.optimizer)
        adapter = TorchAdapter(model, optimizer, loss_fn, scheduler=schedule)
        validation = [to_device(batch, place) for batch in problem.validation]
        return TaskRun(
            adapter=adapter,
            batches=_stream(problem, place),
            probes=tuple(to_device(batch, place) for batch in problem.probes),
            evaluate=lambda: _evaluate(model, evaluate_batch, validation, problem.metrics),
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


def _stream(problem: Problem, device: torch.device) -> Iterator[Any]:
    from hybridcore_torch.batches import to_device

    for batch in problem.batches():
        yield to_device(batch, device)


def _evaluate(
    model: Any, evaluate_batch: Any, batches: list[Any], names: tuple[str, ...]
) -> dict[str, float]:
    """Example-weighted means of the batch metrics, in evaluation mode; every module's mode is put back."""
    import torch

    from hybridcore_torch.batches import n_examples

    active = [m for m in model.modules() if m.training]
    totals = dict.fromkeys(names, 0.0)
    examples = 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                count = n_examples(batch)
                values = evaluate_batch(model, batch)
                for name in names:
                    totals[name] += float(values[name]) * count
                examples += count
    finally:
        for module in active:
            module.training = True
    return {name: total / max(1, examples) for name, total in totals.items()}


FRAMEWORK = TorchFramework()
"""The framework object that `hybridcore` discovers."""
