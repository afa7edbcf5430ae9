"""The plain training loop that every claim is measured against: no engine, the same records (F47, F73)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs

from hybridcore.averaging import RunningAverage
from hybridcore.checkpoint.attributes import put
from hybridcore.checkpoint.engine_state import load_model, model_state
from hybridcore.clock import Stopwatch
from hybridcore.config import AverageConfig, MetricsConfig
from hybridcore.counts import Counts
from hybridcore.events import Event, EventBus
from hybridcore.protocols import Adapter, Phase, StepRecord, StepResult
from hybridcore.readout import ReadOut
from hybridcore.reporting import Reporter

__all__ = ["Baseline"]


class Baseline:
    """Real steps only; offers what the runner needs of an engine.

    Where an average is kept, as the control of the engine's own, the clock stands still while it is
    sampled, so that the plain baseline does not pay for it; `summary` tells the seconds apart.

    Args:
        adapter: Model and optimizer.
        events: Who hears of steps.
        clock: Training time.
        metrics: How often a step is reported.
        average: How to keep a running average of the weights, if at all.
        batches: Held-out batches, which decide between the weights and their average, and on which BatchNorm
            statistics of the average are estimated.
    """

    def __init__(
        self,
        adapter: Adapter,
        events: EventBus,
        clock: Stopwatch,
        metrics: MetricsConfig,
        *,
        average: AverageConfig | None = None,
        batches: Iterable[Any] = (),
    ) -> None:
        self._adapter, self._clock = adapter, clock
        self._batches, self._examples, self.counts = tuple(batches), 0, Counts()
        self.average: RunningAverage | None = None
        self.read_out: ReadOut | None = None
        if average is not None and average.enabled:
            self.average = kept = RunningAverage(average)
            self.read_out = ReadOut(
                average, adapter, kept, lambda: self._batches, self.counts, lambda: self._examples
            )
        self._reporter = Reporter(events, clock, self.counts, metrics)

    @property
    def real_steps(self) -> int:
        """Real steps so far."""
        return self.counts.real_steps

    def step(self, batch: Any) -> StepResult:
        """One real step by the adapter."""
        started = time.perf_counter()
        result = self._adapter.train_step(batch)
        seconds = time.perf_counter() - started
        counts = self.counts
        counts.real_steps += 1
        counts.cost += result.evaluations
        counts.backward_passes += result.backward_passes
        self._examples = result.n_examples
        if result.skipped:
            counts.skipped += 1
            self._reporter.emit(Event.STEP_SKIPPED, phase=Phase.FULL.value, loss=result.loss)
        else:
            rate = self._adapter.learning_rate
            self._reporter.real_step(
                StepRecord(counts.real_steps, Phase.FULL, result.loss, result.grad_norm, rate, seconds)
            )
        if self.average is not None and not result.skipped:
            with self._clock.paused():
                self.average.after_step(self._adapter)
        return result

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the model has the average; without one, the weights stay what they are."""
        if self.average is None:
            yield
            return
        with self.average.in_place(self._adapter, self._batches):
            yield

    def finish(self) -> dict[str, Any]:
        """The summary; nothing is left open."""
        return self.summary()

    def state_dict(self) -> dict[str, Any]:
        """Model, counts and average."""
        average = self.average.state_dict() if self.average is not None else None
        read_out = self.read_out.state_dict() if self.read_out is not None else None
        return {
            "model": model_state(self._adapter),
            "counts": attrs.asdict(self.counts),
            "average": average,
            "read_out": read_out,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        load_model(self._adapter, state["model"])
        put(self.counts, attrs.fields_dict(Counts), state["counts"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.read_out is not None:
            self.read_out.load_state_dict(state["read_out"])

    def summary(self) -> dict[str, Any]:
        """Counts so far under the engine's names."""
        counts = dict.fromkeys(
            ("jumps", "refused", "verdicts_kept", "verdicts_failed", "rollbacks", "history_bytes"), 0
        )
        counts |= dict.fromkeys(
            ("residuals", "residual_bytes", "corrections", "corrections_reverted", "micro_corrections"), 0
        )
        shares = dict.fromkeys(("predicted_steps", "credit_steps", "credit_seconds", "overhead_share"), 0.0)
        return {
            "real_steps": self.counts.real_steps,
            "backward_passes": self.counts.backward_passes,
            "skipped": self.counts.skipped,
            "cost": self.counts.cost,
            "elapsed": self._clock.elapsed(),
            "budget_bytes": 0,
            "average_seconds": self.average.seconds if self.average is not None else 0.0,
            **(self.read_out.summary() if self.read_out is not None else {}),
            **counts,
            **shares,
        }
