"""Corrector `loss-level`: what predictions of the loss were worth so far decides how far to go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between
from hybridcore.correction.store import ResidualStore
from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.protocols import API_VERSION, Correction, Prediction, Residual, Situation

__all__ = ["LossLevel", "best_scale"]

_LIMIT = 2.0
"""Largest relative loss change that is believed: a loss that triples, or one outlier, teaches no more."""


@attrs.frozen(kw_only=True)
class LossLevelConfig:
    """Table ``[correction.loss-level]``.

    Attributes:
        similar: Most similar residuals whose leftover is averaged; 0 leaves it to the regression alone.
        forgetting: Weight of the past against each new residual.
        prior: Residuals' worth of belief that predictions are right as they are.
    """

    similar: int = attrs.field(default=10, validator=between(0))
    forgetting: float = attrs.field(default=0.95, validator=between(0.0, 1.0, low_open=True))
    prior: float = attrs.field(default=2.0, validator=between(0.0, low_open=True))


def best_scale(predicted: float, expected: float) -> float:
    """Multiple of a change at which the loss is lowest, bounded.

    Along the change the loss is taken as the parabola ``s p + s^2 (e - p)`` with the promised change p as
    its slope and the expected change e as its value at s = 1; its minimum lies at ``s = p / (2 (p - e))``.

    Args:
        predicted: p, negative where an improvement is promised.
        expected: e.

    Returns:
        In [0.25, 4]; 1 where nothing is promised.

    Example:
        >>> best_scale(-1.0, -0.5), best_scale(-1.0, 0.0), best_scale(-1.0, -1.0)
        (1.0, 0.5, 4.0)
    """
    if not (math.isfinite(predicted) and math.isfinite(expected)) or predicted >= 0.0:
        return 1.0
    bend = expected - predicted
    scale = -predicted / (2.0 * bend) if bend > 0.0 else math.inf
    return min(max(scale, 0.25), 4.0)


class LossLevel:
    """Regresses realised on predicted loss changes, and scales changes by what it finds.

    With x = predicted and y = realised change, both over the loss level, the estimate is
    ``y = a + b x + l``. (a, b) minimise ``sum_i f^(n-i) (y_i - a - b x_i)^2`` plus a ridge of `prior`
    residuals' weight around (0, 1): recursive least squares with forgetting f in information form (Haykin,
    "Adaptive Filter Theory", chapter 10), whose matrix never loses rank, so that every number stays finite
    (F30). l is the mean leftover of the most similar situations, weighted by ``1 / (1 + d^2 / median d^2)``
    and shrunk by one residual's worth.

    Example:
        >>> corrector = LossLevel()
        >>> corrector.reset(ParamLayout.plan([]), ResidualStore())
        >>> for step in range(30):
        ...     place = Situation(step, np.zeros(28), "drift", 20.0, 2.0, -0.4)
        ...     corrector.observe(Residual(place, realised_change=-0.1))
        >>> round(corrector.expected(place), 2)
        -0.12
    """

    name: ClassVar[str] = "loss-level"
    api_version: ClassVar[int] = API_VERSION
    measures_weights: ClassVar[bool] = False
    rank: ClassVar[int] = 0
    Config: ClassVar[type] = LossLevelConfig

    def __init__(self, config: LossLevelConfig | None = None) -> None:
        self.config = config or LossLevelConfig()
        self._store = ResidualStore(1)
        self._forget()

    def _forget(self) -> None:
        self._matrix = np.zeros((2, 2))
        self._moment = np.zeros(2)
        self.observed = 0

    def reset(self, layout: ParamLayout, store: ResidualStore) -> None:
        """Forget everything."""
        self._store = store
        self._forget()

    def observe(self, residual: Residual) -> None:
        """Take in one pair of predicted and realised loss change."""
        pair = _normalised(residual)
        if pair is None:
            return
        x, y = pair
        row = np.array([1.0, x])
        f = self.config.forgetting
        self._matrix = f * self._matrix + np.outer(row, row)
        self._moment = f * self._moment + row * (y - x)
        self.observed += 1

    def expected(self, situation: Situation) -> float:
        """Corrected loss change; the predicted one before the first observation."""
        level = abs(situation.loss)
        if not (math.isfinite(situation.predicted_change) and 0.0 < level < math.inf):
            return situation.predicted_change
        if self.observed == 0:
            return situation.predicted_change
        x = _clip(situation.predicted_change / level)
        a, b = self._coefficients()
        y = a + b * x + self._leftover(situation, a, b)
        return _clip(y) * level

    def _coefficients(self) -> tuple[float, float]:
        weight = max(self._matrix[0, 0], 1.0)
        spread = max(self._matrix[1, 1] / weight, 1e-12)
        ridge = self.config.prior * np.diag([1.0, spread])
        a, b = np.linalg.solve(self._matrix + ridge, self._moment)
        return float(a), 1.0 + float(b)

    def _leftover(self, situation: Situation, a: float, b: float) -> float:
        near = self._store.similar(situation.features, self.config.similar, situation.predictor)
        pairs = [(pair, d * d) for r, d in near if (pair := _normalised(r)) is not None]
        if not pairs:
            return 0.0
        middle = max(float(np.median([d for _, d in pairs])), 1e-12)
        weights = [1.0 / (1.0 + d / middle) for _, d in pairs]
        total = sum(w * (y - a - b * x) for w, ((x, y), _) in zip(weights, pairs, strict=True))
        return total / (sum(weights) + 1.0)

    def correct(
        self, prediction: Prediction, situation: Situation, history: History, xp: ModuleType
    ) -> Correction:
        """Scale the change to where the corrected loss along it is lowest."""
        expected = self.expected(situation)
        if self.observed == 0 or not math.isfinite(expected):
            return Correction(predicted_change=situation.predicted_change)
        scale = best_scale(situation.predicted_change, expected)
        return Correction(scale=scale, predicted_change=expected)

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {
            "matrix": self._matrix.tolist(),
            "moment": self._moment.tolist(),
            "observed": self.observed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._matrix, self._moment = np.array(state["matrix"]), np.array(state["moment"])
        self.observed = int(state["observed"])


def _clip(value: float) -> float:
    return min(max(value, -_LIMIT), _LIMIT)


def _normalised(residual: Residual) -> tuple[float, float] | None:
    """Predicted and realised change over the loss level; None where one is not known."""
    place = residual.situation
    level = abs(place.loss)
    known = math.isfinite(place.predicted_change) and math.isfinite(residual.realised_change)
    if not known or not 0.0 < level < math.inf:
        return None
    return _clip(place.predicted_change / level), _clip(residual.realised_change / level)
