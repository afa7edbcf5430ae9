"""Online calibration of forecasts by their recent errors."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Conformal"]

COVERAGE = 0.9
"""Coverage that the factors are made for."""
PACE, ENOUGH = 0.02, 10
"""Speed at which the share asked for follows the misses; scores without which nothing is said."""


class Conformal:
    """Factors that make stated deviations true, one per horizon, from the newest held-out errors.

    The score of a forecast is ``|error| / deviation``. Split conformal prediction (Vovk et al. 2005; Lei et
    al. 2018): an interval of `q` deviations, q the ``ceil((n + 1) 0.9)``-th smallest of n exchangeable
    scores, holds the next loss with probability 0.9 or more, whatever the model. A run drifts, so only the
    newest scores count, and the share asked for follows the misses, ``c <- c + 0.02 (miss - 0.1)``, which
    holds the coverage in the long run whatever the drift (Gibbs & Candes 2021). Each score was made by
    parameters that had not seen its loss.

    Args:
        horizons: Horizons that have scores of their own; others are interpolated in log horizon.
        memory: Scores kept per horizon.

    Example:
        >>> calibration = Conformal([1])
        >>> for error in np.random.default_rng(0).standard_normal(400):
        ...     calibration.add(1, 3.0 * abs(error))
        >>> bool(abs(calibration.factors(np.array([1]))[0] - 3.0) < 0.5)
        True
    """

    def __init__(self, horizons: Sequence[int], memory: int = 64) -> None:
        self.horizons, self._memory = tuple(horizons), memory
        self._scores: dict[int, deque[float]] = {j: deque(maxlen=memory) for j in self.horizons}
        self._asked = dict.fromkeys(self.horizons, COVERAGE)

    def add(self, horizon: int, score: float) -> None:
        """Take in the score of one forecast."""
        known = self._scores[horizon]
        if len(known) >= ENOUGH:
            miss = score > _upper(np.asarray(known), self._asked[horizon])
            asked = self._asked[horizon] + PACE * (miss - (1.0 - COVERAGE))
            self._asked[horizon] = min(max(asked, 0.5), 0.999)
        self._scores[horizon].append(score)

    def count(self, horizon: int) -> int:
        """Scores known for a horizon."""
        return len(self._scores[horizon])

    @property
    def nbytes(self) -> int:
        """Bytes that all scores take at most: a float and its place in a list each."""
        return 32 * self._memory * len(self.horizons)

    def factors(self, horizons: NDArray[np.int64]) -> NDArray[np.float64]:
        """Multipliers of the deviations; 1 as long as no horizon has ten scores."""
        known = {j: s for j, s in self._scores.items() if len(s) >= ENOUGH}
        if not known:
            return np.ones(len(horizons))
        normal = NormalDist().inv_cdf(0.5 + COVERAGE / 2.0)
        values = [_upper(np.asarray(s), self._asked[j]) / normal for j, s in known.items()]
        logs = np.log(np.asarray(horizons, np.float64))
        return np.interp(logs, np.log(list(known)), values)

    def probability(self, horizon: int, deviations: float) -> float:
        """Share of forecasts with a smaller score; a lower estimate, 0 without scores.

        Args:
            horizon: Horizon; the nearest one with scores is taken.
            deviations: Stated deviations (without factor) that an error may have.
        """
        nearest = min(self.horizons, key=lambda j: abs(np.log(j / horizon)))
        scores = self._scores[nearest]
        return sum(s <= deviations for s in scores) / (len(scores) + 1) if len(scores) >= ENOUGH else 0.0

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {
            "scores": {str(j): list(s) for j, s in self._scores.items()},
            "asked": {str(j): share for j, share in self._asked.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._asked = {j: float(state["asked"][str(j)]) for j in self.horizons}
        self._scores = {j: deque(state["scores"][str(j)], maxlen=self._memory) for j in self.horizons}


def _upper(scores: NDArray[np.float64], coverage: float) -> float:
    rank = min(len(scores), int(np.ceil((len(scores) + 1) * coverage)))
    return max(float(np.partition(scores, rank - 1)[rank - 1]), 1e-3)
