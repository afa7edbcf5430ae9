"""What is trained and who watches: tasks, frameworks, trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import attrs
from numpy.typing import NDArray

from hybridcore.protocols.adapter import Adapter

__all__ = ["Framework", "OptimizerSpec", "Problem", "Task", "TaskRun", "Tracker"]


@runtime_checkable
class Tracker(Protocol):
    """Receives every event of a run; ``Config`` keys live in ``[trackers.<name>]``."""

    name: ClassVar[str]

    def on_event(self, event: str, payload: Mapping[str, Any]) -> None:
        """Hear one event."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


@attrs.frozen
class TaskRun:
    """A task built for one framework and one seed.

    Attributes:
        adapter: Model and optimizer behind the adapter.
        batches: Endless training batches, the same whenever the task is built with this seed.
        probes: Held-out batches for probes; never overlap `evaluate`'s examples.
        evaluate: Mean validation loss, and other named metrics, of the current weights.
        schedule_step: Called after every real step (learning-rate schedule); None without one.
    """

    adapter: Adapter
    batches: Iterator[Any]
    probes: tuple[Any, ...]
    evaluate: Any
    schedule_step: Any = None


@runtime_checkable
class Task(Protocol):
    """Data, model and optimizer of a training problem; ``Config`` keys live in ``[task]``."""

    name: ClassVar[str]
    frameworks: ClassVar[tuple[str, ...]]

    def build(self, framework: str, seed: int, device: str = "cpu", dtype: str = "float32") -> TaskRun:
        """Build it; a task that knows float32 alone may leave `dtype` out.

        Raises:
            TaskError: The framework is not served, or its data is not installed.
        """
        ...


@runtime_checkable
class Framework(Protocol):
    """What an entry point of the group ``hybridcore.adapters`` loads to: one object per framework.

    Attributes:
        name: Registry name, equal to the entry point's name.
        api_version: `API_VERSION` it was written for.
    """

    name: str
    api_version: int

    def owns(self, model: object) -> bool:
        """Whether `model` is one of this framework's; looks at the object only, never at ``sys.modules``."""
        ...

    def build(self, problem: Problem, device: str) -> TaskRun:
        """Model, optimizer and data of a built-in problem in this framework.

        Raises:
            TaskError: The framework does not know the problem's model or optimizer.
        """
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the framework's packages, for `hybridcore doctor`."""
        ...

    def devices(self) -> tuple[str, ...]:
        """Names of the devices it can use now."""
        ...


@attrs.frozen
class OptimizerSpec:
    """An optimizer in words that every framework knows.

    Attributes:
        name: ``"sgd"``, ``"momentum"``, ``"adam"`` or ``"adamw"``.
        learning_rate: Peak learning rate.
        momentum: Heavy-ball coefficient; ``"momentum"`` only.
        weight_decay: Decoupled weight decay (``"adamw"``), L2 otherwise.
        schedule: ``"constant"``, ``"cosine"`` or ``"linear"`` decay to zero over `total_steps`.
        total_steps: Real steps of the schedule.
        warmup_steps: Linear learning-rate warm-up at its start.
    """

    name: str = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    total_steps: int = 1000
    warmup_steps: int = 0


@attrs.frozen
class Problem:
    """A training problem without framework words; frameworks build models from it.

    Attributes:
        name: The task's registry name.
        model: ``"mlp"``, ``"cnn"``, ``"transformer"`` or ``"pinn"``, known to the framework.
        shape: The model's own sizes, for example ``{"widths": (784, 512, 512, 10)}``.
        weights: Initial weights, arrays by dotted name, the same in every framework; float32, or all float64,
            and the model is built in that precision.
        optimizer: What trains it.
        batches: Makes the endless stream of training batches: tuples of NumPy arrays.
        probes: Held-out batches for probes.
        validation: Batches for evaluation, disjoint from training and probes.
        metrics: Names that `TaskRun.evaluate` returns; the first is the mean validation loss ``"loss"``.
    """

    name: str
    model: str
    shape: Mapping[str, Any]
    weights: Mapping[str, NDArray[Any]]
    optimizer: OptimizerSpec
    batches: Any
    probes: tuple[tuple[NDArray[Any], ...], ...]
    validation: tuple[tuple[NDArray[Any], ...], ...]
    metrics: tuple[str, ...] = ("loss",)
