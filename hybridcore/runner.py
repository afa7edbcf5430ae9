"""Trains one arm of a task from start to end and records it (F46, F47, F72, F77)."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import attrs

from hybridcore import __version__
from hybridcore.arms import plan_arm
from hybridcore.assembly import build_trackers
from hybridcore.averaging import RunningAverage
from hybridcore.baseline import Baseline
from hybridcore.checkpoint.engine_state import load_model
from hybridcore.checkpoint.session import AVERAGE, BEST, RunCheckpoints
from hybridcore.clock import Stopwatch
from hybridcore.components import build_component, import_function
from hybridcore.config import HybridConfig
from hybridcore.configfile import config_to_dict, dump_config
from hybridcore.containment import Containment
from hybridcore.errors import AdapterNotFoundError, CheckpointError, DivergenceError, MetricsError, TaskError
from hybridcore.events import Event, EventBus, Listener
from hybridcore.injection import Fault, inject, mislead
from hybridcore.metrics import SCHEMA, MetricsWriter, plain_json
from hybridcore.protocols import StepResult, TaskRun
from hybridcore.records import AVERAGED, Evaluation, final_loss, loss_gap, speedup, speedup_bound
from hybridcore.tasks.batches import skip_batches
from hybridcore.tracking import Tracking

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = [
    "Recipe",
    "RunResult",
    "Stepper",
    "build_task",
    "require_unused",
    "run_task",
    "train",
    "write_json",
]

logger = logging.getLogger("hybridcore")

_STALLED = 10_000
"""Batches in a row without a real step after which a run cannot be going anywhere."""


class Stepper(Protocol):
    """What is trained with: the engine, or the plain loop."""

    @property
    def average(self) -> RunningAverage | None:
        """Running average of the weights; None where none is kept."""
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


@attrs.frozen
class RunResult:
    """A finished, or interrupted, run.

    Attributes:
        arm: Arm of the comparison.
        seed: Its seed.
        directory: Folder with ``metrics.jsonl``, ``summary.json`` and ``config.toml``.
        evaluations: Validation results in order.
        summary: What ``run-end`` holds.
        interrupted: The user stopped it.
    """

    arm: str
    seed: int
    directory: Path
    evaluations: tuple[Evaluation, ...]
    summary: dict[str, Any]
    interrupted: bool

    @property
    def final_loss(self) -> float:
        """Last validation loss; infinite where there is none."""
        return final_loss(self.evaluations)


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
    return train(plan.config, arm, plan.engine, out, progress, registry, baseline, faults, resume)


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
    """
    task = build_task(config, registry) if isinstance(engine, bool) else engine.task(config, registry)
    events, clock = EventBus(Containment(config.plugins)), Stopwatch()
    if faults:
        task = inject(task, faults, events)
    tracking = Tracking(build_trackers(config, registry), events)
    with MetricsWriter(out_dir / "metrics.jsonl") as writer, tracking:
        if progress is not None:
            events.listen(progress)
        saves = isinstance(engine, bool) and not faults and (config.checkpoint.every > 0 or resume)
        if config.checkpoint.every and not saves:
            logger.warning("arm %s writes no checkpoints: rivals and injected faults cannot be resumed", arm)
        checkpoints = RunCheckpoints(config, arm, task.adapter, out_dir, writer) if saves else None
        with clock.paused():
            if resume:
                _require_resumable(checkpoints)
                events.emit(Event.RUN_START, **_start(config, arm, task))  # the record has it already
                events.listen(writer, essential=True)
            else:
                events.listen(writer, essential=True)
                if checkpoints is not None:
                    checkpoints.require_none()
                events.emit(Event.RUN_START, **_start(config, arm, task))
                try:
                    (out_dir / "config.toml").write_text(dump_config(config), encoding="utf-8")
                except OSError as error:
                    raise _unwritable(out_dir / "config.toml", error) from error
        loop = _Loop(config, arm, task, events, clock, out_dir, faults, checkpoints)
        return loop.run(engine, registry, baseline, writer if resume else None)


def _require_resumable(checkpoints: RunCheckpoints | None) -> None:
    if checkpoints is None:
        raise CheckpointError(
            "this kind of run cannot be resumed",
            where="--resume",
            expected="the engine or the plain loop, without injected faults",
            fix="begin a new run",
        )


class _Loop:
    """The training loop of one run."""

    def __init__(
        self,
        config: HybridConfig,
        arm: str,
        task: TaskRun,
        events: EventBus,
        clock: Stopwatch,
        out_dir: Path,
        faults: Sequence[Fault] = (),
        checkpoints: RunCheckpoints | None = None,
    ) -> None:
        self._faults, self._checkpoints = faults, checkpoints
        self._batches, self._consumed, self._stalled = iter(task.batches), 0, 0
        self._config, self._arm, self._task = config, arm, task
        self._events, self._clock, self._out_dir = events, clock, out_dir
        self._evaluations: list[Evaluation] = []

    def run(
        self,
        engine: bool | Recipe,
        registry: Registry,
        baseline: tuple[Evaluation, ...] | None,
        record: MetricsWriter | None = None,
    ) -> RunResult:
        """Train from the start or, where the record to go on with is given, from a checkpoint."""
        stepper, interrupted = self._stepper(engine, registry), False
        if record is not None:
            self._resume(cast(Resumable, stepper), record)
        try:
            if record is None:
                self._evaluate(stepper)
            self._train(stepper)
            stepper.finish()
            self._evaluate(stepper)
            if self._checkpoints is not None and stepper.average is not None:
                with stepper.averaged():
                    self._checkpoints.export(AVERAGE)
        except KeyboardInterrupt:
            interrupted = True
            logger.warning("interrupted after %d real steps", stepper.real_steps)
        finally:
            if self._checkpoints is not None:
                self._checkpoints.close()
        summary = self._summary(stepper, interrupted, baseline)
        self._events.emit(Event.RUN_END, **summary)
        about = {"arm": self._arm, "seed": self._config.run.seed, **summary}
        try:
            write_json(self._out_dir / "summary.json", about)
        except MetricsError as error:  # the training is done, and its result must not be lost over this
            logger.warning("no summary: %s", error)
        return RunResult(
            self._arm,
            self._config.run.seed,
            self._out_dir,
            tuple(self._evaluations),
            summary,
            interrupted,
        )

    def _stepper(self, engine: bool | Recipe, registry: Registry) -> Stepper:
        adapter = self._task.adapter
        if not isinstance(engine, bool):
            return engine.stepper(self._config, self._task, self._events, self._clock)
        if not engine:
            average = self._config.average
            return Baseline(
                adapter,
                self._events,
                self._clock,
                self._config.metrics,
                average=RunningAverage(average) if average.enabled else None,
                batches=self._task.probes[: self._config.probe.batches],
            )
        from hybridcore.engine import Engine

        made = Engine.from_config(
            adapter,
            self._config,
            probes=self._task.probes,
            registry=registry,
            events=self._events,
            clock=self._clock,
        )
        mislead(made.predictors.values(), self._faults, adapter, self._events)
        return made

    def _resume(self, stepper: Resumable, record: MetricsWriter) -> None:
        """Go on from the newest checkpoint that can be loaded."""
        assert self._checkpoints is not None
        with self._clock.paused():
            for state in self._checkpoints.states():
                try:
                    stepper.load_state_dict(state["stepper"])
                except Exception as error:  # whatever a component makes of a state that is not its own
                    logger.warning("a checkpoint cannot be loaded: %s: %s", type(error).__name__, error)
                    continue
                break
            skip_batches(self._batches, state["batches"])
            load_model(self._task.adapter, state["stepper"]["model"])  # reading data may draw random numbers
            self._checkpoints.went_on(state["batches"])
        record.go_on(state["metrics"])
        self._consumed, self._stalled = state["batches"], state["stalled"]
        self._evaluations = list(state["evaluations"])
        self._clock.resume(state["elapsed"])

    def _train(self, stepper: Stepper) -> None:
        for batch in self._batches:
            if self._use(batch, stepper):
                return
            if self._checkpoints is not None:
                with self._clock.paused():
                    self._checkpoints.after_batch(self._consumed, cast(Resumable, stepper), self._state())
        raise TaskError(
            f"the training batches ended after {stepper.real_steps} of {self._config.run.steps} real steps",
            where=f"task {self._config.task.name!r}",
            expected="an endless stream of batches",
            fix="repeat the data, for example with itertools.cycle, or lower run.steps",
        )

    def _use(self, batch: Any, stepper: Stepper) -> bool:
        """Use one batch; whether it was the last."""
        before, self._consumed = stepper.real_steps, self._consumed + 1
        stepper.step(batch)
        if stepper.real_steps == before:
            self._stalled += 1
            if self._stalled > _STALLED:
                raise DivergenceError(
                    f"no real step in {self._stalled} batches",
                    where=f"step {before}",
                    fix="lower phases.predict_steps",
                )
            return False
        self._stalled = 0
        if self._task.schedule_step is not None:
            self._task.schedule_step()
        if stepper.real_steps >= self._config.run.steps:
            return True
        if stepper.real_steps % self._config.run.evaluate_every == 0:
            self._evaluate(stepper)
        return False

    def _state(self) -> dict[str, Any]:
        """What the loop itself must know again."""
        return {
            "batches": self._consumed,
            "stalled": self._stalled,
            "evaluations": self._evaluations,
            "elapsed": self._clock.elapsed(),
        }

    def _evaluate(self, stepper: Stepper) -> None:
        self._task.adapter.synchronize()  # work still under way on the device is training time
        with self._clock.paused():
            counts = stepper.summary()
            metrics = self._measure()
            if stepper.average is not None:
                with stepper.averaged():
                    averaged = self._measure()
                metrics |= {f"{AVERAGED}{name}": value for name, value in averaged.items()}
                apart = float(counts.get("average_seconds", 0.0))
                metrics[f"{AVERAGED}elapsed"] = float(counts["elapsed"]) + apart
            values = {name: plain_json(float(value)) for name, value in metrics.items()}
            loss = values.pop("loss")
            evaluation = Evaluation(
                step=stepper.real_steps,
                cost=float(counts["cost"]),
                elapsed=float(counts["elapsed"]),
                backward_passes=int(counts["backward_passes"]),
                loss=float("inf") if loss is None else loss,
                metrics=values,
            )
            best = min((e.loss for e in self._evaluations), default=math.inf)
            if self._checkpoints is not None and evaluation.loss < best:
                self._checkpoints.export(BEST)
            self._evaluations.append(evaluation)
            record = attrs.asdict(evaluation)
            self._events.emit(Event.EVALUATION, **{**record.pop("metrics"), **record})

    def _measure(self) -> dict[str, float]:
        found = self._task.evaluate()
        return dict(found) if isinstance(found, Mapping) else {"loss": found}

    def _summary(
        self, stepper: Stepper, interrupted: bool, baseline: tuple[Evaluation, ...] | None
    ) -> dict[str, Any]:
        summary = stepper.summary()
        real, predicted = summary["real_steps"], summary["predicted_steps"]
        share = predicted / (real + predicted) if real + predicted else 0.0
        forward_free = self._config.phases.predict_mode == "jump" or not self._config.phases.forward_every
        gain = speedup(self._evaluations, baseline)
        return {
            **summary,
            "interrupted": interrupted,
            "final_loss": plain_json(final_loss(self._evaluations)),
            "speedup": None if gain is None else gain.wall,
            "speedup_cost": None if gain is None else gain.cost,
            "speedup_bound": speedup_bound(share, forward=0.0 if forward_free else 1.0 / 3.0),
            "loss_gap": loss_gap(self._evaluations, baseline),
        }


def build_task(config: HybridConfig, registry: Registry) -> TaskRun:
    """Data, model and optimizer that the configuration names.

    Raises:
        HybridCoreError: The task is unknown, its options are wrong, or it does not serve the framework.
    """
    name, run = config.task.name, config.run
    if ":" in name:
        function = import_function(name)
        made = function(
            framework=run.framework,
            seed=run.seed,
            device=run.device,
            **_precision(function, config),
            **config.task.options,
        )
        if not isinstance(made, TaskRun):
            raise TaskError(
                "the task's function returned something else than a TaskRun",
                where="task.name",
                got=type(made).__name__,
                expected="hybridcore.protocols.TaskRun",
                fix=f"return TaskRun(adapter=..., batches=..., probes=..., evaluate=...) from {name}",
            )
        return _checked(made, config)
    task = build_component(registry.get("task", name), config.task.options, "task")
    return _checked(task.build(run.framework, run.seed, run.device, **_precision(task.build, config)), config)


def _precision(build: Callable[..., Any], config: HybridConfig) -> dict[str, str]:
    """The argument `dtype`, for a task that takes one.

    Raises:
        TaskError: The run is to be in float64, and the task cannot be told.
    """
    parameters = inspect.signature(build).parameters
    if "dtype" in parameters:
        return {"dtype": config.run.dtype}
    if config.run.dtype == "float32":
        return {}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return {"dtype": config.run.dtype}
    raise TaskError(
        f"task {config.task.name!r} cannot be told a precision",
        where="run.dtype",
        got=config.run.dtype,
        expected="float32, or a task whose function takes an argument `dtype`",
        fix='set run.dtype = "float32", or let the task take `dtype` and build float64 weights for "float64"',
    )


def _checked(made: TaskRun, config: HybridConfig) -> TaskRun:
    """The run, when its weights have the precision that was asked for.

    Raises:
        TaskError: They are not all float64.
    """
    found = {p.dtype for p in made.adapter.layout.params}
    if config.run.dtype == "float64" and found != {"float64"}:
        raise TaskError(
            f"task {config.task.name!r} was not built in float64",
            where="run.dtype",
            got=f"weights in {', '.join(sorted(found))} of the framework {config.run.framework!r}",
            expected="float64 alone",
            fix='set run.dtype = "float32"',
        )
    return made


def require_unused(folder: Path) -> None:
    """Make sure that no earlier run is overwritten or mixed in.

    Raises:
        MetricsError: The folder, or one below it, holds a run already.
    """
    used = next(folder.rglob("metrics.jsonl"), None) if folder.is_dir() else None
    if used is not None:
        raise MetricsError(
            "the folder holds a run already",
            where=str(folder),
            got=str(used),
            expected="a new or empty folder",
            fix="name another folder, or remove the old runs",
        )


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data so that a reader sees the old file or the whole new one.

    Raises:
        MetricsError: It cannot be written; no half file is left.
    """
    text = json.dumps(plain_json(data), indent=2, allow_nan=False) + "\n"
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)  # noqa: PTH105 - Path.replace is the same call
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> MetricsError:
    return MetricsError(
        f"a file of a run cannot be written: {error.strerror or error}",
        where=str(path),
        expected="a folder that can be written, and room on its disk",
        fix="free room, or name another folder",
    )


def _start(config: HybridConfig, arm: str, task: TaskRun) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "task": config.task.name,
        "framework": config.run.framework,
        "seed": config.run.seed,
        "arm": arm,
        "parameters": task.adapter.layout.total,
        "config": config_to_dict(config),
        "versions": _versions(config.run.framework),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions(framework: str) -> dict[str, str]:
    from hybridcore.plugins import load_framework

    versions = {"python": platform.python_version(), "hybridcore": __version__}
    try:
        return versions | load_framework(framework).versions()
    except AdapterNotFoundError:
        return versions  # a task by module:function may bring an adapter of its own
