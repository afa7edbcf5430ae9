"""What the engine says: events for those who listen, trace lines for the log."""

from __future__ import annotations

import logging
import math

from hybridcore.clock import Stopwatch
from hybridcore.config import MetricsConfig
from hybridcore.counts import Counts
from hybridcore.events import Event, EventBus
from hybridcore.jumps import Jump
from hybridcore.protocols import Outcome, Residual, Signal, StepRecord

__all__ = ["Reporter", "describe"]

logger = logging.getLogger("hybridcore")


def describe(signal: Signal) -> str:
    """A signal in words.

    Example:
        >>> from hybridcore.protocols import SignalLevel
        >>> describe(Signal(SignalLevel.CRITICAL, "non-finite", float("nan"), float("inf")))
        'non-finite critical: a value is nan'
        >>> describe(Signal(SignalLevel.WARNING, "loss-deviation", 3.25, 3.0))
        'loss-deviation warning: 3.25 beyond 3'
    """
    what = f"{signal.name} {signal.level.word}"
    if not math.isfinite(signal.limit):
        return f"{what}: a value is {signal.value:g}"
    return f"{what}: {signal.value:.4g} beyond {signal.limit:.4g}"


class Reporter:
    """Turns what happens in a run into events and trace lines.

    Args:
        events: Who hears of it.
        clock: Training time.
        counts: Gives the step and the cost of each event.
        config: How often a step is reported, and whether decisions are logged at INFO level.

    Example:
        >>> from hybridcore.config import MetricsConfig
        >>> bus, seen = EventBus(), []
        >>> bus.listen(lambda event, payload: seen.append((event.value, payload["step"])))
        >>> Reporter(bus, Stopwatch(), Counts(real_steps=7), MetricsConfig()).phase_end("full")
        >>> seen
        [('phase-end', 7)]
    """

    def __init__(self, events: EventBus, clock: Stopwatch, counts: Counts, config: MetricsConfig) -> None:
        self.events, self.clock, self._counts, self._config = events, clock, counts, config
        self._level = logging.INFO if config.trace else logging.DEBUG

    def trace(self, message: str, *values: object) -> None:
        """Log one line with the step before it."""
        logger.log(self._level, "step %d: " + message, self._counts.real_steps, *values)

    def emit(self, event: Event, **payload: object) -> None:
        """Emit an event of the present real step."""
        self.events.emit(event, step=self._counts.real_steps, **payload)

    def real_step(self, record: StepRecord) -> None:
        """A real step, where somebody listens and its turn has come."""
        if not self.events.heard or record.step % self._config.step_every:
            return
        counts = self._counts
        self.emit(
            Event.REAL_STEP,
            phase=record.phase.value,
            loss=record.loss,
            grad_norm=record.grad_norm,
            learning_rate=record.learning_rate,
            seconds=record.seconds,
            elapsed=self.clock.elapsed(),
            cost=counts.cost,
            backward_passes=counts.backward_passes,
            predicted_steps=counts.predicted_steps,
        )

    def predicted_step(self, loss: float) -> None:
        """One share of a change was applied."""
        counts = self._counts
        self.emit(
            Event.PREDICTED_STEP,
            predicted_steps=counts.predicted_steps,
            loss=loss,
            elapsed=self.clock.elapsed(),
            cost=counts.cost,
        )

    def phase_end(self, phase: str) -> None:
        """A phase is over."""
        self.emit(Event.PHASE_END, phase=phase)

    def phase_start(self, phase: str, length: int, reason: str, *, routine: bool = False) -> None:
        """A phase begins; routine ones, of which a trial may have many, are no news for the log."""
        if not routine:
            self.trace("%s: %s", f"{phase} for {length}" if length else phase, reason)
        self.emit(Event.PHASE_START, phase=phase, length=length, reason=reason)

    def jump(self, jump: Jump, predictor: str, reason: str, share: float) -> None:
        """A change was applied, or `share` of it."""
        self.emit(
            Event.JUMP,
            predictor=predictor,
            horizon=jump.horizon * share,
            confidence=jump.confidence,
            relative=jump.relative * share,
            capped=[g.value for g in jump.capped],
            elapsed=self.clock.elapsed(),
            cost=self._counts.cost,
            reason=reason,
        )

    def residual(self, residual: Residual) -> None:
        """A prediction was compared with what came of it."""
        place = residual.situation
        self.emit(
            Event.RESIDUAL,
            predictor=place.predictor,
            horizon=place.horizon,
            loss=place.loss,
            predicted_change=place.predicted_change,
            realised_change=residual.realised_change,
            gains={g.value: r / p if p > 0.0 else 0.0 for g, (r, p) in residual.groups.items()},
            residual_bytes=residual.weights.nbytes if residual.weights is not None else 0,
            residual_error=residual.weights.relative_error if residual.weights is not None else 0.0,
        )

    def correction(
        self, kind: str, corrector: str, kept: bool, change: float, error: float, factor: float
    ) -> None:
        """A change was corrected, or the correction reverted."""
        word = "kept" if kept else "reverted"
        self.trace("%s correction by %+.3g %s: loss change %.4g", kind, factor, word, change)
        self.emit(
            Event.CORRECTION,
            kind=kind,
            corrector=corrector,
            kept=kept,
            loss_change=change,
            loss_change_error=error,
            factor=factor,
        )

    def refused(self, predictor: str, horizon: float, reason: str) -> None:
        """A change was refused."""
        self.trace("jump refused: %s", reason)
        self.emit(Event.JUMP_REFUSED, predictor=predictor, horizon=horizon, reason=reason)

    def signal(self, signal: Signal) -> None:
        """A monitor found something."""
        level = signal.level.word
        self.trace("signal %s", describe(signal))
        self.emit(Event.SIGNAL, monitor=signal.name, level=level, value=signal.value, limit=signal.limit)

    def recovery(self, action: str, cause: str, reason: str) -> None:
        """Something was done about it; whoever did it has logged it."""
        self.emit(Event.RECOVERY, action=action, cause=cause, reason=reason)

    def verdict(self, outcome: Outcome) -> None:
        """A trial ended."""
        word = "kept" if outcome.kept else "failed"
        self.trace("verdict %s after %d real steps: %s", word, outcome.real_steps, outcome.reason)
        self.emit(
            Event.VERDICT,
            kept=outcome.kept,
            predictor=outcome.predictor,
            horizon=outcome.horizon,
            jumps=outcome.jumps,
            gain=outcome.gain,
            gain_error=outcome.gain_error,
            credit_steps=outcome.credit_steps,
            credit_seconds=outcome.credit_seconds,
            behind_steps=outcome.behind_steps,
            straightness=outcome.straightness,
            reason=outcome.reason,
        )
