"""What a run is trained with: the engine, the plain loop, or a rival's recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from hybridcore.averaging import RunningAverage
from hybridcore.baseline import Baseline
from hybridcore.clock import Stopwatch
from hybridcore.config import HybridConfig
from hybridcore.events import EventBus
from hybridcore.injection import Fault, mislead
from hybridcore.protocols import StepResult, TaskRun
from hybridcore.readout import ReadOut

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["Recipe", "Resumable", "Stepper", "build_stepper"]


class Stepper(Protocol):
    """What is trained with: the engine, or the plain loop."""

    @property
    def average(self) -> RunningAverage | None:
        """Running average of the weights; None where none is kept."""
        ...

    @property
    def read_out(self) -> ReadOut | None:
        """Chooses between the weights and their average; None without one."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the model has the average as its weights."""
        ...

    @property
    def real_steps(self) -> int:
        """Real steps so far."""
        ...

    def step(self, batch: Any) -> StepResult:
        """Use one batch."""
        ...

    def summary(self) -> dict[str, Any]:
        """Counts so far."""
        ...

    def finish(self) -> dict[str, Any]:
        """Close what is open and give the summary."""
        ...


class Resumable(Stepper, Protocol):
    """A stepper whose state can be saved."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how it goes on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


class Recipe(Protocol):
    """A way to train other than the engine and the plain loop, with the same records: a rival (F74)."""

    def task(self, config: HybridConfig, registry: Registry) -> TaskRun:
        """Data, model and optimizer."""
        ...

    def stepper(self, config: HybridConfig, task: TaskRun, events: EventBus, clock: Stopwatch) -> Stepper:
        """What is trained with."""
        ...


def build_stepper(
    engine: bool | Recipe,
    config: HybridConfig,
    task: TaskRun,
    registry: Registry,
    events: EventBus,
    clock: Stopwatch,
    faults: Sequence[Fault] = (),
) -> Stepper:
    """What the task is trained with.

    Args:
        engine: True for the engine, False for the plain loop, or a recipe.
        config: The configuration.
        task: Data, model and optimizer.
        registry: Where names are looked up.
        events: Who hears what happens.
        clock: Training time.
        faults: Faults to inject into the engine's predictors.

    Raises:
        HybridCoreError: A component is unknown or does not fit the task.
    """
    adapter = task.adapter
    if not isinstance(engine, bool):
        return engine.stepper(config, task, events, clock)
    if not engine:
        return Baseline(
            adapter,
            events,
            clock,
            config.metrics,
            average=config.average,
            batches=task.probes[: config.probe.batches],
        )
    from hybridcore.engine import Engine

    made = Engine.from_config(
        adapter, config, probes=task.probes, registry=registry, events=events, clock=clock
    )
    mislead(made.predictors.values(), faults, adapter, events)
    return made
