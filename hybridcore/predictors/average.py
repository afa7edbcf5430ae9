"""Predictor `average`: back to the mean of the recent path, an annealed read-out."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between
from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.predictors.snapshots import combine
from hybridcore.protocols import API_VERSION, Prediction, StepRecord

__all__ = ["Average"]


@attrs.frozen(kw_only=True)
class AverageConfig:
    """Table ``[predictor.average]``.

    Attributes:
        windows: Most window means averaged.
        share: Share of the run so far that the mean covers at most; at least one window.
        step: How far to go: 1 lands on the mean, 2 as far beyond it, a negative step goes away from it.
    """

    windows: int = attrs.field(default=5, validator=between(2))
    share: float = attrs.field(default=0.1, validator=between(0.0, 1.0, low_open=True))
    step: float = attrs.field(default=1.0, validator=between(-2.0, 2.0))


class Average:
    """Moves the weights to the mean of recent window means.

    The change is ``step * (mean(m_{k-n+1} .. m_k) - w)`` with ``n = share * steps / W``, at least one and at
    most `windows`. At a constant learning rate the iterates hover around the path's slow part; their mean
    is where a decay of the learning rate would have ended (Kaddour, Stop Wasting My Time, 2022; Ajroldi,
    Orvieto and Geiping, ICML 2025). It is a step back: its horizon is minus `step` times the mean's age.

    Example:
        >>> Average().config.windows
        5
    """

    name: ClassVar[str] = "average"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"window-means"})
    Config: ClassVar[type] = AverageConfig

    def __init__(self, config: AverageConfig | None = None) -> None:
        self.config = config or AverageConfig()
        self.windows = self.config.windows
        self._step = 0

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """A new run begins."""
        self._step = 0

    def observe(self, record: StepRecord) -> None:
        """Note how long the run is."""
        self._step = record.step

    def _count(self, history: History) -> int:
        wanted = int(self.config.share * self._step / history.window)
        return max(1, min(wanted, self.config.windows, history.windows))

    def ready(self, history: History) -> bool:
        """Whether all windows that the mean should cover are there."""
        return len(history.window_means) >= self._count(history)

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Go to the mean, whatever the horizon."""
        means = history.window_means[-self._count(history) :]
        mean = combine(means, [1.0 / len(means)] * len(means), history)
        deltas = tuple(w - m for w, m in zip(history.current(), mean, strict=True))
        age = history.open_steps + (len(means) * history.window - 1) / 2.0
        return Prediction(deltas, -self.config.step * age, 1.0, scale=-self.config.step)

    def state_dict(self) -> dict[str, Any]:
        """How long the run is."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._step = int(state["step"])
