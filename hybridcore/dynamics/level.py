"""Running level and scale of the loss, so that models learn numbers free of its units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LossLevel", "symexp", "symlog"]

RATE, SLOW = 1.0 / 16.0, 1.0 / 32.0
"""Of the averages of the loss, and of its deviation."""


def symlog(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """``sign(x) log(1 + |x|)`` (Hafner et al. 2023, eq. 9).

    Example:
        >>> round(float(symlog(np.asarray(-math.e + 1.0))), 12)
        -1.0
    """
    value: NDArray[np.float64] = np.sign(x) * np.log1p(np.abs(x))
    return value


def symexp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `symlog`."""
    value: NDArray[np.float64] = np.sign(x) * np.expm1(np.abs(x))
    return value


class LossLevel:
    """Where the loss is now without its noise, and by how much it moves.

    `level` is the double exponential average ``2 e - e(e)``, which does not lag behind a linear trend (Brown
    1956). `scale` is the mean absolute deviation of the loss from the single average ``e``: noise plus about
    15 steps' worth of trend, so that it is never tiny while the loss falls. Both are equivariant: a loss
    times c gives level and scale times c.

    Example:
        >>> level = LossLevel()
        >>> for step in range(900):
        ...     level.observe(10.0 - 0.01 * step)
        >>> round(level.level, 6), round(level.scale, 3)
        (1.01, 0.16)
    """

    def __init__(self) -> None:
        self._first = self._second = self._deviation = self._newest = math.nan
        self._weight = 0.0
        self.count = 0

    def observe(self, loss: float) -> None:
        """Take in one loss."""
        self.count += 1
        self._newest = loss
        if self.count == 1:
            self._first = self._second = loss
            self._deviation = 0.0
            return
        # The deviation's average starts empty; its weight undoes the pull to zero.
        self._deviation += SLOW * (abs(loss - self._first) - self._deviation)
        self._weight += SLOW * (1.0 - self._weight)
        self._first += RATE * (loss - self._first)
        self._second += RATE * (self._first - self._second)

    @property
    def level(self) -> float:
        """Current loss without noise; NaN before the first."""
        return 2.0 * self._first - self._second

    @property
    def scale(self) -> float:
        """Running deviation, above zero; NaN before the second loss."""
        if self.count < 2:
            return math.nan
        return max(self._deviation / self._weight, 1e-9 * abs(self._first), 1e-300)

    @property
    def position(self) -> tuple[float, float]:
        """Newest loss above the level, and trend over the averages' memory, both in units of `scale`."""
        if self.count < 2:
            return 0.0, 0.0
        return (self._newest - self.level) / self.scale, (self._first - self._second) / self.scale

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {
            "first": self._first,
            "second": self._second,
            "newest": self._newest,
            "deviation": self._deviation,
            "weight": self._weight,
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._first, self._second = state["first"], state["second"]
        self._newest = state["newest"]
        self._deviation, self._weight, self.count = state["deviation"], state["weight"], state["count"]
