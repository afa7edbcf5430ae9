"""Predictor `anderson`: regularised extrapolation to the fixed point of the window means."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between
from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.predictors.snapshots import combine, differences, gram, norm_of
from hybridcore.protocols import API_VERSION, Prediction, StepRecord

__all__ = ["Anderson"]


@attrs.frozen(kw_only=True)
class AndersonConfig:
    """Table ``[predictor.anderson]``.

    Attributes:
        windows: Window means combined.
        ridge: lambda over the largest eigenvalue of the residuals' inner products.
        mixing: Share of its own residual that each mean is moved by before they are combined.
        step: Share of the way to the extrapolated point.
    """

    windows: int = attrs.field(default=5, validator=between(3))
    ridge: float = attrs.field(default=1e-4, validator=between(0.0, low_open=True))
    mixing: float = attrs.field(default=1.0, validator=between(0.0, 1.0))
    step: float = attrs.field(default=1.0, validator=between(0.0, 1.0, low_open=True))


class Anderson:
    """Goes to the point where the residuals of the recent path, linearly combined, vanish.

    With residuals ``r_i = m_{i+1} - m_i`` of window means m, the coefficients minimise ::

        |sum c_i r_i|^2 + lambda |c|^2   with   sum c_i = 1,    c = z / sum z,  (G + lambda I) z = 1

    and the change is ``sum c_i (m_i + mixing r_i) - w``. Exact where the means follow a linear iteration with
    fewer modes than there are residuals (Scieur, d'Aspremont and Bach, Regularized Nonlinear Acceleration,
    NIPS 2016). The point lies at the end of the path, so the jump does not grow with the horizon; it is
    booked as the horizon asked for.

    Example:
        >>> Anderson().windows
        5
    """

    name: ClassVar[str] = "anderson"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"window-means"})
    Config: ClassVar[type] = AndersonConfig

    def __init__(self, config: AndersonConfig | None = None) -> None:
        self.config = config or AndersonConfig()
        self.windows = self.config.windows

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Nothing is kept beyond the history."""

    def observe(self, record: StepRecord) -> None:
        """Nothing is learned from scalars."""

    def ready(self, history: History) -> bool:
        """Whether all windows that the history can keep are there; three at least."""
        return len(history.window_means) >= max(3, min(self.windows, history.windows))

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Go to the extrapolated point."""
        c = self.config
        means = history.window_means[-self.windows :]
        residuals = differences(means)
        products = gram(residuals, xp, history.kernels)
        count, largest = len(residuals), float(np.linalg.norm(products, 2))
        if largest == 0.0:
            return Prediction(residuals[-1], horizon, 0.0, scale=0.0)
        solved = np.linalg.solve(products / largest + c.ridge * np.eye(count), np.ones(count))
        shares = solved / solved.sum()
        # m_i = m_k - (r_i + ... + r_{k-1}): sums of small residuals instead of differences of large means.
        weights = c.mixing * shares - np.cumsum(shares)
        towards = combine(residuals, weights, history)
        pairs = zip(towards, means[-1], history.current(), strict=True)
        left = norm_of(products, shares) / max(float(np.sqrt(products[-1, -1])), 1e-30)
        return Prediction(
            tuple(t + (m - w) for t, m, w in pairs), horizon, max(0.0, 1.0 - left), scale=c.step
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
