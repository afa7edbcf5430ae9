"""Search for a factor on the horizon by comparing trials in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hybridcore.protocols import Outcome

__all__ = ["FactorSearch"]


class FactorSearch:
    """A multiplier that climbs or falls on a logarithmic scale where trials show that it pays.

    A comparison takes two trials in a row, both judged by probe: the first with the factor, the second with
    ``factor * step`` or ``factor / step``. The second becomes the factor where the loss of its averaged
    weights fell by more, by `z` standard errors of the differences paired by example. Curves flatten, so the
    second trial starts with a handicap, and nothing is won by noise. Without a win the direction turns, and
    the next comparison waits twice as long.

    Args:
        step: Ratio of the two factors compared; 1 never compares.
        low: Smallest factor.
        high: Largest factor.
        z: Standard errors by which the other factor must win.
        pause: Real steps of pause after the first comparison without a win.

    Attributes:
        value: Factor of the present trial.
        best: Factor that won so far.

    Example:
        >>> search = FactorSearch(step=2.0, low=0.5, high=4.0, z=2.0, pause=40)
        >>> search.begin(step=30)
        >>> search.comparing, search.value
        (True, 1.0)
    """

    def __init__(self, *, step: float, low: float, high: float, z: float, pause: int) -> None:
        self._step, self._low, self._high, self._z, self._pause = step, low, high, z, pause
        self.value = self.best = 1.0
        self._stage = 0
        self._measured = False
        self._up = True
        self._next = 0
        self._quiet = 0

    @property
    def comparing(self) -> bool:
        """Whether the present trial belongs to a comparison and must be judged by probe."""
        return self._stage > 0

    def due(self, step: int) -> bool:
        """Whether a comparison may begin at this real step."""
        return self._step > 1.0 and self._stage == 0 and step >= self._next

    def begin(self, step: int) -> None:
        """A trial is about to open after this real step, and jumps pay with the present factor."""
        if self._stage == 1 and self._measured:
            self._stage, self.value = 2, self._other()
        elif self.due(step):
            self._stage, self._measured = 1, False
            if not self._low <= self._other() <= self._high:
                self._up = not self._up

    def feedback(self, outcome: Outcome, step: int) -> bool:
        """Hear how the present trial ended, at a real step.

        Returns:
            Whether it failed, or fell behind, while it tried a longer horizon: then nothing else is to blame.
        """
        if self._stage == 0:
            return False
        if self._stage == 1:
            self._measured = outcome.kept and math.isfinite(outcome.gain)
            self._stage = int(self._measured)
            return False
        quicker = outcome.quickening > self._z * outcome.quickening_error
        won = outcome.kept and not outcome.behind_steps and quicker
        longer, bad = self.value > self.best, not outcome.kept or outcome.behind_steps > 0.0
        self._settle(step, won=won)
        return longer and bad

    def _settle(self, step: int, *, won: bool) -> None:
        self._stage = 0
        if won:
            self.best, self._quiet, self._next = self.value, 0, step
            return
        self.value, self._up = self.best, not self._up
        self._next = step + self._pause * 2**self._quiet
        self._quiet = min(self._quiet + 1, 16)

    def _other(self) -> float:
        return self.best * self._step if self._up else self.best / self._step

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for key, value in state.items():
            setattr(self, key, value)
