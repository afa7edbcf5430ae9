"""The plain training loop that every claim is measured against: no engine, the same records (F47, F73)."""

from __future__ import annotations

import time
from typing import Any

from hybridcore.clock import Stopwatch
from hybridcore.events import Event, EventBus
from hybridcore.protocols import Adapter, Phase, StepResult

__all__ = ["Baseline"]


class Baseline:
    """Real steps only; offers what the runner needs of an engine.

    Args:
        adapter: Model and optimizer.
        events: Who hears of steps.
        clock: Training time.
        step_every: A step is reported every this many steps.
    """

    def __init__(self, adapter: Adapter, events: EventBus, clock: Stopwatch, step_every: int = 1) -> None:
        self._adapter, self._events, self._clock, self._step_every = adapter, events, clock, step_every
        self.real_steps = 0
        self._backward_passes = 0
        self._skipped = 0

    def step(self, batch: Any) -> StepResult:
        """One real step by the adapter."""
        started = time.perf_counter()
        result = self._adapter.train_step(batch)
        seconds = time.perf_counter() - started
        self.real_steps += 1
        self._backward_passes += result.backward_passes
        if result.skipped:
            self._skipped += 1
            self._events.emit(
                Event.STEP_SKIPPED, step=self.real_steps, phase=Phase.FULL.value, loss=result.loss
            )
        elif self.real_steps % self._step_every == 0:
            self._events.emit(
                Event.REAL_STEP,
                step=self.real_steps,
                phase=Phase.FULL.value,
                loss=result.loss,
                grad_norm=result.grad_norm,
                learning_rate=self._adapter.learning_rate,
                seconds=seconds,
                elapsed=self._clock.elapsed(),
                cost=float(self.real_steps),
                backward_passes=self._backward_passes,
                predicted_steps=0.0,
            )
        return result

    def finish(self) -> dict[str, Any]:
        """The summary; nothing is left open."""
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Counts so far under the engine's names."""
        counts = dict.fromkeys(
            ("jumps", "refused", "verdicts_kept", "verdicts_failed", "rollbacks", "history_bytes"), 0
        )
        shares = dict.fromkeys(("predicted_steps", "credit_steps", "credit_seconds", "overhead_share"), 0.0)
        return {
            "real_steps": self.real_steps,
            "backward_passes": self._backward_passes,
            "skipped": self._skipped,
            "cost": float(self.real_steps),
            "elapsed": self._clock.elapsed(),
            "budget_bytes": 0,
            **counts,
            **shares,
        }
