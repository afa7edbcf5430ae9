"""Predictor `drift`: the displacement between two window means, continued."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between, choice
from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.protocols import API_VERSION, Prediction, StepRecord

__all__ = ["Drift"]


@attrs.frozen(kw_only=True)
class DriftConfig:
    """Table ``[predictor.drift]``.

    Attributes:
        anchor: ``"iterate"`` continues from the current weights; ``"mean"`` from the newest window mean,
            which also removes the noise of the last iterate.
        pairs: Pairs of successive windows averaged into the direction.
    """

    anchor: str = attrs.field(default="iterate", validator=choice("iterate", "mean"))
    pairs: int = attrs.field(default=1, validator=between(1))


class Drift:
    """Continues the slow drift of the weights.

    With window means m_k over W real steps, the velocity is ``v = (m_k - m_{k-p}) / (p W)`` per step, and
    the change is ``horizon * v``. Means, not iterates: along sharp directions iterates oscillate, and
    averaging over W steps divides the noise that a jump amplifies by W. A negative horizon steps back
    along the drift.

    Example:
        >>> Drift().config.anchor
        'iterate'
    """

    name: ClassVar[str] = "drift"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"window-means"})
    Config: ClassVar[type] = DriftConfig

    def __init__(self, config: DriftConfig | None = None) -> None:
        self.config = config or DriftConfig()

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Nothing is kept beyond the history."""

    def observe(self, record: StepRecord) -> None:
        """Nothing is learned from scalars."""

    def ready(self, history: History) -> bool:
        """Whether there are two window means."""
        return len(history.window_means) >= 2

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Continue the drift for `horizon` steps."""
        means = history.window_means
        pairs = min(self.config.pairs, len(means) - 1)
        scale = horizon / (pairs * history.window)
        newest, older = means[-1], means[-1 - pairs]
        deltas = tuple(a - b for a, b in zip(newest, older, strict=True))
        straight = history.straightness()
        confidence = min(max(straight, 0.0), 1.0) if straight == straight else 1.0
        if self.config.anchor == "iterate":
            return Prediction(deltas, horizon, confidence, scale=scale)
        # The newest mean lies (W - 1) / 2 steps back: first return to it, then go as far as asked.
        current = history.current()
        reach = scale + (history.window - 1) / (2.0 * pairs * history.window)
        moved = tuple(m - c + d * reach for m, c, d in zip(newest, current, deltas, strict=True))
        return Prediction(moved, horizon, confidence)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
