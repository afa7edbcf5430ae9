"""Holding predictions back after a signal: shorter horizons, a higher confidence threshold (F37, F39)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hybridcore.config import RecoveryConfig

__all__ = ["Restraint"]


class Restraint:
    """A multiplier of horizons and an addition to the confidence threshold; both return by themselves.

    ``t`` real steps after the latest of either, ``ratio = 1 - (1 - ratio_0) exp(-t / relax_steps)`` and
    ``threshold = threshold_0 exp(-t / relax_steps)``.

    Args:
        config: Sizes and the time in which they return.

    Example:
        >>> restraint = Restraint(RecoveryConfig(predict_ratio=0.5, relax_steps=100))
        >>> restraint.reduce(step=40)
        >>> restraint.ratio(40), round(restraint.ratio(140), 3)
        (0.5, 0.816)
    """

    def __init__(self, config: RecoveryConfig) -> None:
        self._config = config
        self._ratio, self._reduced_at = 1.0, 0
        self._raised, self._raised_at = 0.0, 0

    def _left(self, since: int, step: int) -> float:
        return math.exp(-max(0, step - since) / self._config.relax_steps)

    def ratio(self, step: int) -> float:
        """What horizons are multiplied by, in (0, 1]."""
        return 1.0 - (1.0 - self._ratio) * self._left(self._reduced_at, step) if self._ratio < 1.0 else 1.0

    def threshold(self, step: int) -> float:
        """Confidence asked for on top of the controller's own threshold, in [0, 1)."""
        return self._raised * self._left(self._raised_at, step) if self._raised else 0.0

    def reduce(self, step: int) -> None:
        """Multiply the ratio by `predict_ratio`."""
        self._ratio, self._reduced_at = self.ratio(step) * self._config.predict_ratio, step

    def demand(self, step: int) -> None:
        """Add `raise_threshold` to the threshold, to at most 0.99."""
        self._raised = min(self.threshold(step) + self._config.raise_threshold, 0.99)
        self._raised_at = step

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {"ratio": [self._ratio, self._reduced_at], "threshold": [self._raised, self._raised_at]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._ratio, self._reduced_at = state["ratio"]
        self._raised, self._raised_at = state["threshold"]
