"""Predictor `ema-drift`: an exponential moving average of window displacements, continued."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between
from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.protocols import Prediction, StepRecord

__all__ = ["EmaDrift", "EmaDriftConfig"]


@attrs.frozen(kw_only=True)
class EmaDriftConfig:
    """Table ``[predictor.ema-drift]``.

    Attributes:
        decay: Weight of a displacement relative to the next newer one; 0 keeps only the newest.
    """

    decay: float = attrs.field(default=0.5, validator=between(0.0, 1.0))


class EmaDrift:
    """Continues the averaged drift of the weights.

    With displacements d_0 (newest), d_1, ... between successive window means of W steps, the velocity is
    ``v = sum_k decay^k d_k / (W sum_k decay^k)`` per step, and the change is ``horizon * v``.

    Example:
        >>> EmaDrift().config.decay
        0.5
    """

    name: ClassVar[str] = "ema-drift"
    api_version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"window-means"})
    Config: ClassVar[type] = EmaDriftConfig

    def __init__(self, config: EmaDriftConfig | None = None) -> None:
        self.config = config or EmaDriftConfig()

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Nothing is kept beyond the history."""

    def observe(self, record: StepRecord) -> None:
        """Nothing is learned from scalars."""

    def ready(self, history: History) -> bool:
        """Whether there is a displacement."""
        return len(history.window_means) >= 2

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Continue the averaged drift for `horizon` steps."""
        pairs = len(history.window_means) - 1
        weights = [self.config.decay**k for k in range(pairs)]
        total = history.displacement(-1)
        for k, weight in enumerate(weights[1:], start=2):
            total = tuple(t + weight * d for t, d in zip(total, history.displacement(-k), strict=True))
        return Prediction(total, horizon, 1.0, scale=horizon / (history.window * sum(weights)))

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
