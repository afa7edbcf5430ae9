"""Monitor `plateau`: the loss has stopped falling."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from hybridcore.config import between
from hybridcore.protocols import API_VERSION, Signal, SignalLevel, StepRecord

__all__ = ["Plateau"]

_BLOCKS = 20


@attrs.frozen(kw_only=True)
class PlateauConfig:
    """Table ``[divergence.plateau]``.

    Attributes:
        window: Steps whose two halves are compared, rounded down to twenty blocks of equal length.
        tolerance: Fall from one half to the next, as a share of the loss, below which the slope is nought.
    """

    window: int = attrs.field(default=200, validator=between(20))
    tolerance: float = attrs.field(default=0.005, validator=between(0.0))


class Plateau:
    """A caution where the mean loss of the last half window is hardly below that of the half before (F32).

    Never more than a caution: a converged run has a plateau too. Tuning may act on it (table ``[autotune]``).

    Example:
        >>> from hybridcore.protocols import Phase
        >>> monitor = Plateau()
        >>> for step in range(200):
        ...     record = StepRecord(step, Phase.FULL, 1.0, 1.0, 0.1, 0.01)
        ...     monitor.observe(record)
        >>> monitor.check(record).level.word
        'caution'
    """

    name: ClassVar[str] = "plateau"
    api_version: ClassVar[int] = API_VERSION
    Config: ClassVar[type] = PlateauConfig

    def __init__(self, config: PlateauConfig | None = None) -> None:
        self.config = config or PlateauConfig()
        self._size = self.config.window // _BLOCKS
        self.reset()

    def reset(self) -> None:
        """Forget all losses; the next signal is a whole window away."""
        self._blocks: deque[float] = deque(maxlen=_BLOCKS)
        self._sum, self._count = 0.0, 0

    def observe(self, record: StepRecord) -> None:
        """Add one loss to the present block."""
        if math.isfinite(record.loss):
            self._sum += record.loss
            self._count += 1
            if self._count == self._size:
                self._blocks.append(self._sum)
                self._sum, self._count = 0.0, 0

    def check(self, record: StepRecord) -> Signal | None:
        """A caution, or None."""
        blocks = list(self._blocks)
        if len(blocks) < _BLOCKS:
            return None
        earlier, later = sum(blocks[: _BLOCKS // 2]), sum(blocks[_BLOCKS // 2 :])
        fall = (earlier - later) / max(abs(earlier), 1e-300)
        if fall >= self.config.tolerance:
            return None
        return Signal(SignalLevel.CAUTION, self.name, fall, self.config.tolerance)

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {"blocks": list(self._blocks), "open": [self._sum, self._count]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._blocks = deque(state["blocks"], maxlen=_BLOCKS)
        self._sum, count = state["open"]
        self._count = int(count)
