"""Monitor `gradient-norm`: gradients explode or vanish."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, ClassVar

import attrs

from hybridcore.config import between
from hybridcore.protocols import API_VERSION, Signal, SignalLevel, StepRecord

__all__ = ["GradientNorm"]

_VANISHED_IN_A_ROW = 5
_LEARNED_BY = 8
"""Losses by which a fall of the loss is told, where gradients grow."""

_RENEW = 16
"""New norms after which the median is taken anew."""


@attrs.frozen(kw_only=True)
class GradientNormConfig:
    """Table ``[divergence.gradient-norm]``.

    Attributes:
        exploding: Multiples of the baseline that are a warning, where two norms in a row are that large, and
            a caution where the loss has come down meanwhile; ten times as many are critical at once.
        vanishing: Share of the baseline below which five norms in a row are a warning, unless the loss has
            come down as well.
        window: Norms that the baseline is the median of.
        quiet_steps: Norms at the start, or after a reset, in which only the baseline is learned.
    """

    exploding: float = attrs.field(default=10.0, validator=between(1.0, low_open=True))
    vanishing: float = attrs.field(default=0.01, validator=between(0.0, 1.0))
    window: int = attrs.field(default=128, validator=between(8))
    quiet_steps: int = attrs.field(default=20, validator=between(1))


class GradientNorm:
    """Gradient norm over a robust baseline (F32).

    The baseline is the median of recent norms, and never below ``peak / exploding``, where the peak is the
    largest norm of the run that was not found exploding: late in training, one hard batch has many times the
    median's gradient, and that is no explosion. A norm that equals the one before counts as not measured.

    Example:
        >>> from hybridcore.protocols import Phase
        >>> monitor = GradientNorm()
        >>> for step, norm in enumerate([1.0, 1.1] * 20 + [150.0]):
        ...     record = StepRecord(step, Phase.FULL, 1.0, norm, 0.1, 0.01)
        ...     monitor.observe(record)
        >>> monitor.check(record).level.word
        'critical'
    """

    name: ClassVar[str] = "gradient-norm"
    api_version: ClassVar[int] = API_VERSION
    Config: ClassVar[type] = GradientNormConfig

    def __init__(self, config: GradientNormConfig | None = None) -> None:
        self.config = config or GradientNormConfig()
        self.reset()

    def reset(self) -> None:
        """Forget the baseline."""
        self._norms: deque[float] = deque(maxlen=self.config.window)
        self._losses: deque[float] = deque(maxlen=self.config.window)
        self._fresh: list[tuple[float, float]] = []
        self._last = math.nan
        self._before = 0.0
        self._peak = 0.0
        self._usual, self._level, self._learned = 0.0, math.nan, _RENEW

    def observe(self, record: StepRecord) -> None:
        """Keep one norm until the next check."""
        norm = record.grad_norm
        if math.isfinite(norm) and math.isfinite(record.loss) and (norm != self._last or norm == 0.0):
            self._fresh.append((norm, record.loss))
            self._last = norm

    def check(self, record: StepRecord) -> Signal | None:
        """The worst since the last check; then the new norms enter the baseline, none above its limit."""
        steps, self._fresh = self._fresh, []
        room = self.config.quiet_steps - len(self._norms)
        if room > 0 and steps:
            self._learn(steps[:room])
            self._before, steps = steps[:room][-1][0], steps[room:]
        if not steps:
            return None
        fresh = [norm for norm, _ in steps]
        if self._learned >= _RENEW:
            # Of the same steps: a run that has come to its optimum has small norms and a low loss.
            self._usual, self._level, self._learned = median(self._norms), median(self._losses), 0
        base = max(self._usual, self._peak / self.config.exploding)
        losses = [*self._losses, *(loss for _, loss in steps)]
        signal = self._explosion(fresh, base, losses) or self._vanishing(fresh, losses)
        limit = self.config.exploding * base
        self._learn([(min(norm, limit) if base > 0.0 else norm, loss) for norm, loss in steps])
        self._before = fresh[-1]
        return signal

    def _learn(self, steps: list[tuple[float, float]]) -> None:
        norms = [norm for norm, _ in steps]
        self._norms.extend(norms)
        self._losses.extend(loss for _, loss in steps)
        self._learned += len(norms)
        self._peak = max(self._peak, *norms)

    def _explosion(self, fresh: list[float], base: float, losses: list[float]) -> Signal | None:
        if base <= 0.0:
            return None
        limit = self.config.exploding
        worst = max(fresh) / base
        if worst > 10.0 * limit:
            return Signal(SignalLevel.CRITICAL, self.name, worst, 10.0 * limit)
        if worst <= limit:
            return None
        row = [self._before, *fresh]
        sustained = max(min(a, b) for a, b in zip(row, fresh, strict=False)) / base
        if sustained <= limit:
            return None
        # Where a run leaves a plateau its gradients grow tenfold too, and its loss falls.
        learns = median(losses[-_LEARNED_BY:]) < median(losses)
        level = SignalLevel.CAUTION if learns else SignalLevel.WARNING
        return Signal(level, self.name, sustained, limit)

    def _vanishing(self, fresh: list[float], losses: list[float]) -> Signal | None:
        usual = self._usual
        if not usual > 0.0 or fresh[-1] >= self.config.vanishing * usual:
            return None
        last = [*self._norms, *fresh][-_VANISHED_IN_A_ROW:]
        if max(last) >= self.config.vanishing * usual:
            return None
        if median(losses[-_VANISHED_IN_A_ROW:]) < self._level:
            # An optimum comes near, or the gradient was that of an oscillation which a smaller learning rate
            # has ended. Units that died, or saturate, leave the loss higher than before.
            return None
        return Signal(SignalLevel.WARNING, self.name, max(last) / usual, self.config.vanishing)

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {
            "norms": list(self._norms),
            "losses": list(self._losses),
            "fresh": list(self._fresh),
            "last": self._last,
            "before": self._before,
            "peak": self._peak,
            "usual": [self._usual, self._level, self._learned],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        window = self.config.window
        self._norms = deque(state["norms"], maxlen=window)
        self._losses = deque(state["losses"], maxlen=window)
        self._fresh, self._last = [(norm, loss) for norm, loss in state["fresh"]], state["last"]
        self._before, self._peak = state["before"], state["peak"]
        self._usual, self._level, learned = state["usual"]
        self._learned = int(learned)
