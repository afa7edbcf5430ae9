"""Trains one arm of a task from start to end and records it (F46, F47, F72, F77)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from hybridcore.arms import plan_arm
from hybridcore.assembly import build_trackers
from hybridcore.checkpoint.session import RunCheckpoints
from hybridcore.clock import Stopwatch
from hybridcore.config import HybridConfig
from hybridcore.containment import Containment
from hybridcore.errors import CheckpointError
from hybridcore.events import Event, EventBus, Listener
from hybridcore.injection import Fault, inject
from hybridcore.metrics import MetricsWriter
from hybridcore.peaks import PeakMemory
from hybridcore.records import Evaluation
from hybridcore.runfiles import run_start, write_config
from hybridcore.steppers import Recipe, build_stepper
from hybridcore.tasks.batches import skip_batches
from hybridcore.tasks.building import build_task
from hybridcore.tracking import Tracking
from hybridcore.training import RunResult, TrainingLoop

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["run_task", "train"]

logger = logging.getLogger("hybridcore")


def run_task(
    config: HybridConfig,
    *,
    arm: str = "hybrid",
    out_dir: str | Path,
    progress: Listener | None = None,
    registry: Registry | None = None,
    baseline: tuple[Evaluation, ...] | None = None,
    faults: Sequence[Fault] = (),
    resume: bool = False,
) -> RunResult:
    """Train, evaluate and record one arm.

    Args:
        config: The configuration.
        arm: One of `hybridcore.arms.ARMS`, or ``lr-x<factor>``.
        out_dir: Folder for the run's files; made when the first record is written.
        progress: Hears every event.
        registry: Where names are looked up; loaded from the installed plugins if None.
        baseline: Evaluations of the paired baseline; without them `speedup` and `loss_gap` stay None.
        faults: Faults to inject; see `hybridcore.injection`.
        resume: Go on with the run in `out_dir` from its newest sound checkpoint (F53).

    Returns:
        The result. A KeyboardInterrupt ends the run early and is noted there, not raised.

    Raises:
        CheckpointError: There is no checkpoint to go on from, or this run can have none.
        HybridCoreError: The task cannot be built, a component is unknown, or the run diverged.
    """
    if registry is None:
        from hybridcore.plugins import load_registry

        registry = load_registry(config.plugins.load, config.plugins.block)
    if arm == "tuned":
        from hybridcore.tuning import tune

        return tune(config, out_dir=out_dir, progress=progress, registry=registry, baseline=baseline).best
    plan = plan_arm(config, arm, registry)
    out = Path(out_dir)
    return train(plan.config, arm, plan.engine, out, progress, registry, baseline, faults, resume, plan.skip)


def train(
    config: HybridConfig,
    arm: str,
    engine: bool | Recipe,
    out_dir: Path,
    progress: Listener | None,
    registry: Registry,
    baseline: tuple[Evaluation, ...] | None = None,
    faults: Sequence[Fault] = (),
    resume: bool = False,
    skip: int = 0,
) -> RunResult:
    """`run_task` after the arm is planned: with this configuration, under this label.

    Args:
        config: The configuration.
        arm: The label.
        engine: True for the engine, False for the plain loop, or a recipe of your own.
        out_dir: Folder for the run's files.
        progress: Hears every event.
        registry: Where names are looked up.
        baseline: Evaluations of the paired baseline.
        faults: Faults to inject.
        resume: Go on from the newest sound checkpoint.
        skip: Batches of the task's stream to pass over first.
    """
    with ExitStack() as stack:
        memory = stack.enter_context(PeakMemory())
        task = build_task(config, registry) if isinstance(engine, bool) else engine.task(config, registry)
        if skip:
            task = attrs.evolve(task, batches=iter(task.batches))
            skip_batches(task.batches, skip)
        memory.follow(task.adapter)
        events, clock = EventBus(Containment(config.plugins)), Stopwatch()
        if faults:
            task = inject(task, faults, events)
        tracking = Tracking(build_trackers(config, registry), events)
        writer = stack.enter_context(MetricsWriter(out_dir / "metrics.jsonl"))
        stack.enter_context(tracking)
        if progress is not None:
            events.listen(progress)
        saves = isinstance(engine, bool) and not faults and (config.checkpoint.every > 0 or resume)
        if config.checkpoint.every and not saves:
            logger.warning("arm %s writes no checkpoints: rivals and injected faults cannot be resumed", arm)
        checkpoints = RunCheckpoints(config, arm, task.adapter, out_dir, writer) if saves else None
        with clock.paused():
            if resume:
                _require_resumable(checkpoints)
                events.emit(Event.RUN_START, **run_start(config, arm, task))  # the record has it already
                events.listen(writer, essential=True)
            else:
                events.listen(writer, essential=True)
                if checkpoints is not None:
                    checkpoints.require_none()
                events.emit(Event.RUN_START, **run_start(config, arm, task))
                write_config(out_dir / "config.toml", config)
        loop = TrainingLoop(config, arm, task, events, clock, out_dir, checkpoints, memory)
        stepper = build_stepper(engine, config, task, registry, events, clock, faults)
        return loop.run(stepper, baseline, writer if resume else None)


def _require_resumable(checkpoints: RunCheckpoints | None) -> None:
    if checkpoints is None:
        raise CheckpointError(
            "this kind of run cannot be resumed",
            where="--resume",
            expected="the engine or the plain loop, without injected faults",
            fix="begin a new run",
        )
