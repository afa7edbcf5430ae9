"""Monitor `oscillation`: the loss swings to and fro from step to step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from hybridcore.config import between
from hybridcore.protocols import API_VERSION, Signal, SignalLevel, StepRecord

__all__ = ["Oscillation"]


@attrs.frozen(kw_only=True)
class OscillationConfig:
    """Table ``[divergence.oscillation]``.

    Attributes:
        caution: Share of sign changes, sampling error deducted, that is a caution.
        warning: The same for a warning.
        window: Steps over which sign changes are counted.
        amplitude: Mean swing over the loss's level below which an oscillation is no signal.
    """

    caution: float = attrs.field(default=0.5, validator=between(0.0, 1.0))
    warning: float = attrs.field(default=0.8, validator=between(0.0, 1.0))
    window: int = attrs.field(default=128, validator=between(8))
    amplitude: float = attrs.field(default=0.1, validator=between(0.0))


class Oscillation:
    """Share of steps at which the loss crosses its own average of 16 steps (F32).

    Noise crosses it at every second step, a step too long for the curvature at every step. From the share
    its sampling error under noise, three standard deviations of a fair coin (``1.5 / sqrt(window)``), is
    deducted, so that noise stays below one half.

    Example:
        >>> from hybridcore.protocols import Phase
        >>> monitor = Oscillation()
        >>> for step in range(200):
        ...     record = StepRecord(step, Phase.FULL, 2.0 + (-1) ** step, 1.0, 0.1, 0.01)
        ...     monitor.observe(record)
        >>> monitor.check(record).level.word
        'warning'
    """

    name: ClassVar[str] = "oscillation"
    api_version: ClassVar[int] = API_VERSION
    Config: ClassVar[type] = OscillationConfig

    def __init__(self, config: OscillationConfig | None = None) -> None:
        self.config = config or OscillationConfig()
        self.reset()

    def reset(self) -> None:
        """Forget all swings."""
        self._level = math.nan
        self._swing = 0.0
        self._above = False
        self._crossed = 0
        self._crossings: deque[bool] = deque(maxlen=self.config.window)

    def observe(self, record: StepRecord) -> None:
        """Note on which side of its average the loss lies."""
        loss = record.loss
        if not math.isfinite(loss):
            return
        if self._level != self._level:
            self._level = loss
            return
        gap = loss - self._level
        self._level += gap / 16.0
        self._swing += (abs(gap) - self._swing) / 16.0
        above = gap > 0.0
        crossings = self._crossings
        if len(crossings) == crossings.maxlen:
            self._crossed -= crossings[0]
        crossed = above is not self._above
        crossings.append(crossed)
        self._crossed += crossed
        self._above = above

    def check(self, record: StepRecord) -> Signal | None:
        """A caution, a warning, or None."""
        c = self.config
        if len(self._crossings) < c.window or self._swing <= c.amplitude * abs(self._level):
            return None
        share = self._crossed / c.window - 1.5 / math.sqrt(c.window)
        if share > c.warning:
            return Signal(SignalLevel.WARNING, self.name, share, c.warning)
        if share > c.caution:
            return Signal(SignalLevel.CAUTION, self.name, share, c.caution)
        return None

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {
            "level": self._level,
            "swing": self._swing,
            "above": self._above,
            "crossings": list(self._crossings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._level, self._swing, self._above = state["level"], state["swing"], bool(state["above"])
        self._crossings = deque(map(bool, state["crossings"]), maxlen=self.config.window)
        self._crossed = sum(self._crossings)
