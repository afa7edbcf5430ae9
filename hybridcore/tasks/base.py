"""What built-in tasks share: options of the training recipe, and building through a framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import attrs

from hybridcore.config import between, choice
from hybridcore.errors import TaskError
from hybridcore.protocols import OptimizerSpec, Problem, TaskRun
from hybridcore.tasks.precision import in_float64

__all__ = ["BuiltinTask", "TrainingOptions", "build_problem"]


@attrs.frozen(kw_only=True)
class TrainingOptions:
    """Keys that every built-in task understands.

    Attributes:
        optimizer: ``"sgd"``, ``"momentum"``, ``"adam"`` or ``"adamw"``.
        learning_rate: Peak learning rate.
        momentum: Heavy-ball coefficient; read by ``"momentum"``.
        weight_decay: Decoupled weight decay (``"adamw"``), L2 otherwise.
        schedule: ``"constant"``, or ``"cosine"`` or ``"linear"`` decay to zero over `schedule_steps`.
        schedule_steps: Real steps of the schedule; read by decaying schedules.
        lr_warmup_steps: Steps of a linear learning-rate warm-up at the start; 0 for none.
    """

    optimizer: str = attrs.field(default="sgd", validator=choice("sgd", "momentum", "adam", "adamw"))
    learning_rate: float = attrs.field(default=1e-2, validator=between(0.0, low_open=True))
    momentum: float = attrs.field(default=0.9, validator=between(0.0, 1.0, high_open=True))
    weight_decay: float = attrs.field(default=0.0, validator=between(0.0))
    schedule: str = attrs.field(default="constant", validator=choice("constant", "cosine", "linear"))
    schedule_steps: int = attrs.field(default=1000, validator=between(1))
    lr_warmup_steps: int = attrs.field(default=0, validator=between(0))

    def spec(self) -> OptimizerSpec:
        """These keys in the words of the adapters."""
        return OptimizerSpec(
            name=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            total_steps=self.schedule_steps,
            warmup_steps=self.lr_warmup_steps,
        )


class BuiltinTask(ABC):
    """A task whose problem is NumPy only and whose model comes from the framework's adapter."""

    name: ClassVar[str]
    frameworks: ClassVar[tuple[str, ...]] = ("torch", "jax", "tensorflow")

    @abstractmethod
    def problem(self, seed: int) -> Problem:
        """Data, initial weights and optimizer; the splits do not depend on `seed`.

        Args:
            seed: Seeds initial weights and the order of examples.

        Raises:
            TaskError: The data is not installed.
        """

    def build(self, framework: str, seed: int, device: str = "cpu", dtype: str = "float32") -> TaskRun:
        """Build the task in one framework.

        Args:
            framework: Registry name of the adapter.
            seed: Seeds initial weights and the order of examples.
            device: Device name in the framework's own words.
            dtype: ``"float32"``, or ``"float64"`` for weights and data in double precision.

        Raises:
            TaskError: The framework is not served, or the data is not installed.
            AdapterNotFoundError: The framework's adapter is not installed.
        """
        if framework not in self.frameworks:
            raise TaskError(
                f"task {self.name!r} is not built for {framework!r}",
                where="run.framework",
                got=framework,
                expected=f"one of {', '.join(self.frameworks)}",
                fix=f'set run.framework = "{self.frameworks[0]}"',
            )
        return build_problem(self.problem(seed), framework, device, dtype)


def build_problem(problem: Problem, framework: str, device: str, dtype: str) -> TaskRun:
    """Build a problem in one framework and precision.

    Raises:
        TaskError: The framework cannot build it.
        AdapterNotFoundError: The framework's adapter is not installed.
    """
    from hybridcore.plugins import load_framework

    return load_framework(framework).build(in_float64(problem) if dtype == "float64" else problem, device)
