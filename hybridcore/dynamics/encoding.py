"""Actions as vectors that a model can take in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hybridcore.protocols import Action, Phase

__all__ = ["ActionEncoder"]


class ActionEncoder:
    """One-hot phase, one-hot predictor and ``log(1 + |horizon|)`` with its sign, in one vector.

    A dense layer on a one-hot vector is an embedding. A predictor that the encoder does not know sets none of
    its entries.

    Args:
        predictors: Registry names that actions may carry.

    Example:
        >>> encoder = ActionEncoder(["drift", "last-update"])
        >>> jump = Action(Phase.PREDICT, 0, "", predictor="drift", horizon=math.e - 1.0)
        >>> encoder.encode(jump).tolist()
        [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """

    def __init__(self, predictors: Sequence[str]) -> None:
        self.predictors = tuple(predictors)
        self._phases = {phase: i for i, phase in enumerate(Phase)}
        self._places = {name: len(self._phases) + i for i, name in enumerate(self.predictors)}
        self.size = len(self._phases) + len(self.predictors) + 1
        rows = np.eye(len(self._phases), self.size, dtype=np.float32)
        self._plain = dict(zip(Phase, rows, strict=True))
        self.real_step = self._plain[Phase.FULL]

    def encode(self, action: Action) -> NDArray[np.float32]:
        """Vector of an action, shape ``(size,)``."""
        if action.phase is not Phase.PREDICT:
            return self._plain[action.phase]
        vector = np.zeros(self.size, np.float32)
        vector[self._phases[action.phase]] = 1.0
        place = self._places.get(action.predictor or "")
        if place is not None:
            vector[place] = 1.0
        vector[-1] = math.copysign(math.log1p(abs(action.horizon)), action.horizon)
        return vector
