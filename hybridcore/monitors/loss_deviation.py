"""Monitor `loss-deviation`: the training loss has risen out of its noise."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from hybridcore.config import between
from hybridcore.protocols import API_VERSION, Phase, Signal, SignalLevel, StepRecord

__all__ = ["LossDeviation"]

_GAUSSIAN = math.sqrt(math.pi / 2.0)
"""Standard deviation over mean absolute deviation of a normal distribution."""

_CLIP = 2.5
"""Deviations that one loss may at most count for in the baseline."""

_BEYOND = 2.0
"""Multiple of what has passed by itself, in height and in length, below which a rise is nothing new."""

_RISE = 4
"""Steps in a row that a rise lasts at least; noise stays up for fewer."""


@attrs.frozen(kw_only=True)
class LossDeviationConfig:
    """Table ``[divergence.loss-deviation]``.

    Attributes:
        sigma: Deviations above the baseline that are a warning; 0.7 of them a caution, twice as many
            critical.
        persistence: Losses in a row that must all be that high; one hard batch is no divergence.
        outlier: A single loss this many times the baseline, or the range of all losses so far where that is
            larger, above the baseline is critical at once.
        memory: Steps that the baseline remembers.
        min_rise: A warning needs a rise by this share of the baseline at least.
        quiet_steps: Steps at the start, or after a reset, in which only the baseline is learned.
    """

    sigma: float = attrs.field(default=3.0, validator=between(0.0, low_open=True))
    persistence: int = attrs.field(default=3, validator=between(1))
    outlier: float = attrs.field(default=3.0, validator=between(0.0, low_open=True))
    memory: int = attrs.field(default=64, validator=between(2))
    min_rise: float = attrs.field(default=0.1, validator=between(0.0))
    quiet_steps: int = attrs.field(default=20, validator=between(1))


class LossDeviation:
    """One-sided z-score of the training loss against its exponential average (F32, F33).

    ``z = (loss - average) / max(deviation, min_rise * |average| / sigma)``, where the deviation is that of a
    normal distribution with the losses' mean absolute deviation, and no loss enters average and deviation
    with more than 2.5 deviations (winsorised, as in Huber 1964), so that what is to be found does not hide
    itself. The smallest of the last `persistence` z-scores counts. A loss below its average never alarms.

    Some losses spike and come down by themselves again and again, as on full batches at a learning rate near
    the edge of stability. A rise that passed by itself, in Full steps alone, is remembered by its score and
    its length; one that is at most twice as high and twice as long as the largest of these is no signal. It
    is one as soon as it lasts longer.

    Example:
        >>> from hybridcore.protocols import Phase
        >>> monitor = LossDeviation()
        >>> for step in range(60):
        ...     monitor.observe(StepRecord(step, Phase.FULL, 1.0 + 0.1 * (step % 2), 1.0, 0.1, 0.01))
        >>> for step in range(60, 63):
        ...     record = StepRecord(step, Phase.FULL, 2.0, 1.0, 0.1, 0.01)
        ...     monitor.observe(record)
        >>> monitor.check(record).level.word
        'critical'
    """

    name: ClassVar[str] = "loss-deviation"
    api_version: ClassVar[int] = API_VERSION
    Config: ClassVar[type] = LossDeviationConfig

    def __init__(self, config: LossDeviationConfig | None = None) -> None:
        self.config = config or LossDeviationConfig()
        self.reset()

    def reset(self) -> None:
        """Forget baseline and noise."""
        self._level = self._deviation = 0.0
        self._lowest, self._highest = math.inf, -math.inf
        self._seen = 0
        self._recent: deque[float] = deque(maxlen=self.config.persistence)
        self._worst = self._outlier = -math.inf
        self._length, self._height, self._rest, self._start, self._alone = 0, 0.0, 0, 0.0, True
        self._healed = (0, 0.0)

    def observe(self, record: StepRecord) -> None:
        """Score one loss, then let it into the baseline."""
        loss, c = record.loss, self.config
        if not math.isfinite(loss):
            return
        gap = loss - self._level
        if self._seen >= c.quiet_steps:
            scale = max(_GAUSSIAN * self._deviation, c.min_rise / c.sigma * abs(self._level), 1e-300)
            z = gap / scale
            self._recent.append(z)
            if z > 0.7 * c.sigma:
                if not self._length:
                    self._start = self._level + 0.7 * c.sigma * scale
                self._rest = 0
                self._alone = self._alone and record.phase is Phase.FULL
                self._suspect(z, gap)
                gap = min(gap, _CLIP * scale)
                loss = self._level + gap
            elif self._length:
                self._pass_by(loss)
        elif not self._seen:
            self._level, gap = loss, 0.0
        self._seen += 1
        rate = max(1.0 / self._seen, 1.0 / c.memory)
        self._level += rate * gap
        self._deviation += rate * (abs(gap) - self._deviation)
        if loss > self._highest:
            self._highest = loss
        if loss < self._lowest:
            self._lowest = loss

    def _suspect(self, z: float, gap: float) -> None:
        self._length += 1
        if self._length >= self.config.persistence:
            score = min(self._recent)
            self._height = max(self._height, score)
            length, height = self._healed
            if self._length > _BEYOND * length or score > _BEYOND * height:
                self._worst = max(self._worst, score)
        if z > 2.0 * self.config.sigma:
            span = max(self._highest - self._lowest, abs(self._level), 1e-300)
            self._outlier = max(self._outlier, gap / span)

    def _pass_by(self, loss: float) -> None:
        """End a rise where the loss is back to where it began, or where it has stayed up for good.

        Only the first is remembered, and only without jumps, which say nothing about the run's own ways.
        """
        self._rest += 1
        if loss <= self._start:
            if self._alone and self._length >= max(_RISE, self.config.persistence):
                length, height = self._healed
                self._healed = max(length, self._length), max(height, self._height)
        elif self._rest <= self.config.memory:
            return
        self._length, self._height, self._rest, self._alone = 0, 0.0, 0, True

    def check(self, record: StepRecord) -> Signal | None:
        """The worst since the last check."""
        worst, outlier = self._worst, self._outlier
        self._worst = self._outlier = -math.inf
        sigma, name = self.config.sigma, self.name
        if worst > 2.0 * sigma:
            return Signal(SignalLevel.CRITICAL, name, worst, 2.0 * sigma)
        if outlier > self.config.outlier:
            return Signal(SignalLevel.CRITICAL, name, outlier, self.config.outlier)
        if worst > sigma:
            return Signal(SignalLevel.WARNING, name, worst, sigma)
        if worst > 0.7 * sigma:
            return Signal(SignalLevel.CAUTION, name, worst, 0.7 * sigma)
        return None

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {
            "level": self._level,
            "deviation": self._deviation,
            "range": [self._lowest, self._highest],
            "seen": self._seen,
            "recent": list(self._recent),
            "worst": [self._worst, self._outlier],
            "rise": [self._length, self._height, self._rest, self._start, self._alone],
            "healed": list(self._healed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._level, self._deviation = state["level"], state["deviation"]
        self._lowest, self._highest = state["range"]
        self._seen = int(state["seen"])
        self._recent = deque(state["recent"], maxlen=self.config.persistence)
        self._worst, self._outlier = state["worst"]
        length, self._height, rest, self._start, alone = state["rise"]
        self._length, self._rest, self._alone = int(length), int(rest), bool(alone)
        length, height = state["healed"]
        self._healed = int(length), float(height)
