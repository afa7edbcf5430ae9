"""The training loop of one run: batches, evaluations, checkpoints, and the run's result (F46, F53)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import attrs

from hybridcore.checkpoint.engine_state import load_model
from hybridcore.checkpoint.session import AVERAGE, BEST, RunCheckpoints
from hybridcore.clock import Stopwatch
from hybridcore.config import HybridConfig
from hybridcore.errors import DivergenceError, MetricsError, TaskError
from hybridcore.events import Event, EventBus
from hybridcore.metrics import MetricsWriter, plain_json
from hybridcore.peaks import PeakMemory
from hybridcore.protocols import TaskRun
from hybridcore.records import (
    AVERAGED,
    READ_OUT,
    Evaluation,
    curve_of,
    final_loss,
    loss_gap,
    speedup,
    speedup_bound,
)
from hybridcore.runfiles import write_json
from hybridcore.steppers import Resumable, Stepper
from hybridcore.tasks.batches import skip_batches

__all__ = ["RunResult", "TrainingLoop"]

logger = logging.getLogger("hybridcore")

_STALLED = 10_000
"""Batches in a row without a real step after which a run cannot be going anywhere."""


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


class TrainingLoop:
    """The training loop of one run.

    Args:
        config: The configuration.
        arm: Label of the run.
        task: Data, model and optimizer.
        events: Who hears what happens.
        clock: Training time.
        out_dir: Folder for the run's files.
        checkpoints: The run's checkpoints; None where none are written.
        memory: Reads the memory of the run; None where the summary leaves it out.
    """

    def __init__(
        self,
        config: HybridConfig,
        arm: str,
        task: TaskRun,
        events: EventBus,
        clock: Stopwatch,
        out_dir: Path,
        checkpoints: RunCheckpoints | None = None,
        memory: PeakMemory | None = None,
    ) -> None:
        self._checkpoints, self._memory = checkpoints, memory
        self._batches, self._consumed, self._stalled = iter(task.batches), 0, 0
        self._config, self._arm, self._task = config, arm, task
        self._events, self._clock, self._out_dir = events, clock, out_dir
        self._evaluations: list[Evaluation] = []

    def run(
        self,
        stepper: Stepper,
        baseline: tuple[Evaluation, ...] | None,
        record: MetricsWriter | None = None,
    ) -> RunResult:
        """Train from the start, or go on from a checkpoint.

        Args:
            stepper: What is trained with.
            baseline: Evaluations of the paired baseline, for the summary.
            record: The record to go on with, where the run is resumed.

        Returns:
            The result; a KeyboardInterrupt is noted there.

        Raises:
            HybridCoreError: The run diverged, or its batches ended too early.
        """
        interrupted = False
        if record is not None:
            self._resume(cast(Resumable, stepper), record)
        try:
            if record is None:
                self._evaluate(stepper)
            self._train(stepper)
            stepper.finish()
            self._evaluate(stepper, last=True)
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
        every = self._config.run.evaluate_every
        if stepper.real_steps // every > before // every:  # a recipe may make several steps of one batch
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

    def _evaluate(self, stepper: Stepper, *, last: bool = False) -> None:
        self._task.adapter.synchronize()  # work still under way on the device is training time
        with self._clock.paused():
            counts = stepper.summary()
            metrics = self._measure()
            metrics |= self._measure_average(stepper, metrics, counts, last)
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

    def _measure_average(
        self, stepper: Stepper, plain: dict[str, float], counts: dict[str, Any], last: bool
    ) -> dict[str, float]:
        """Metrics of the average, and of what the run is read out by; nothing where there is no average."""
        if stepper.average is None:
            return {}
        with stepper.averaged():
            averaged = self._measure()
        found = {f"{AVERAGED}{name}": value for name, value in averaged.items()}
        elapsed = float(counts["elapsed"]) + float(counts.get("average_seconds", 0.0))
        found[f"{AVERAGED}elapsed"] = elapsed
        read_out = stepper.read_out
        if read_out is not None:
            chosen = averaged if read_out.decide(anew=last) else plain
            found |= {f"{READ_OUT}{name}": value for name, value in chosen.items()}
            found[f"{READ_OUT}elapsed"] = elapsed + read_out.seconds
            found[f"{READ_OUT}cost"] = float(counts["cost"]) + read_out.cost
        return found

    def _read_out_loss(self) -> float | None:
        curve = curve_of(self._evaluations, READ_OUT)
        loss: float | None = plain_json(final_loss(curve))
        return loss

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
            **(self._memory.summary() if self._memory is not None else {}),
            "interrupted": interrupted,
            "final_loss": plain_json(final_loss(self._evaluations)),
            **({"read_out_loss": self._read_out_loss()} if stepper.read_out is not None else {}),
            "speedup": None if gain is None else gain.wall,
            "speedup_cost": None if gain is None else gain.cost,
            "speedup_bound": speedup_bound(share, forward=0.0 if forward_free else 1.0 / 3.0),
            "loss_gap": loss_gap(self._evaluations, baseline),
        }
