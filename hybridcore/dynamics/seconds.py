"""Expected seconds of a real step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["StepTime"]


class StepTime:
    """Running mean of the seconds per real step.

    It stands apart from the models, so that clocks never enter what they learn about losses (F72).

    Example:
        >>> time = StepTime()
        >>> time.expected, time.observe(0.5), time.expected
        (0.0, None, 0.5)
    """

    def __init__(self) -> None:
        self.expected = 0.0
        self._count = 0

    def observe(self, seconds: float) -> None:
        """Take in the seconds of one step."""
        if math.isfinite(seconds):
            self._count += 1
            self.expected += (seconds - self.expected) / min(self._count, 20)

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {"expected": self.expected, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.expected, self._count = state["expected"], state["count"]
