"""Predictor `spectral`: dynamic mode decomposition of the window means."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import between
from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.predictors.snapshots import combine, differences, gram, norm_of
from hybridcore.protocols import API_VERSION, Prediction, StepRecord

__all__ = ["Spectral"]


@attrs.frozen(kw_only=True)
class SpectralConfig:
    """Table ``[predictor.spectral]``.

    Attributes:
        windows: Window means that the dynamics are fitted to.
        rank: Most modes kept.
        tolerance: Directions in which the path extends less than this share of its largest extent are
            dropped as noise.
        ridge: Pull of the fitted map to the identity, that is to a straight continuation, relative to the
            square of the path's largest extent.
    """

    windows: int = attrs.field(default=5, validator=between(3))
    rank: int = attrs.field(default=3, validator=between(1))
    tolerance: float = attrs.field(default=0.01, validator=between(0.0, 1.0, low_open=True))
    ridge: float = attrs.field(default=1e-4, validator=between(0.0))


class Spectral:
    """Continues the linear dynamics that the recent displacements obey.

    Window displacements ``d_i = m_i - m_{i-1}`` of a linear iteration follow ``d_{i+1} = A d_i``. A is fitted
    by least squares in the span of the displacements (method of snapshots: all algebra is on their k x k
    inner products), its eigenvalues are clipped to ``|lambda| <= 1`` and set to zero where their real part
    is negative. A mode with lambda per window and ``mu = lambda^(1/W)`` per step moves the weights by ::

        lambda (1 - mu^H) / (1 - lambda) * s * d,    s = mu^e W mu^(W-1) / (1 + mu + ... + mu^(W-1))

    in H steps, where s takes a window's mean to the current weights, e steps after the window closed. The
    change never exceeds the longest displacement, continued straight. Sources: Schmid, Dynamic mode
    decomposition, J. Fluid Mech. 2010; Tano, Portwood and Ragusa 2020; Dogra and Redman, NeurIPS 2020.

    Example:
        >>> Spectral().windows
        5
    """

    name: ClassVar[str] = "spectral"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"window-means"})
    Config: ClassVar[type] = SpectralConfig

    def __init__(self, config: SpectralConfig | None = None) -> None:
        self.config = config or SpectralConfig()
        self.windows = self.config.windows

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Nothing is kept beyond the history."""

    def observe(self, record: StepRecord) -> None:
        """Nothing is learned from scalars."""

    def ready(self, history: History) -> bool:
        """Whether all windows that the history can keep are there; three at least."""
        return len(history.window_means) >= max(3, min(self.windows, history.windows))

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Continue the dynamics for `horizon` steps; a negative horizon goes straight back."""
        c = self.config
        steps = differences(history.window_means[-self.windows :])
        products = gram(steps, xp, history.kernels)
        straight = horizon / history.window
        if horizon < 0.0 or not products[:-1, :-1].any():
            return Prediction(steps[-1], horizon, 0.0, scale=straight)
        whiten, unwhiten = _basis(products[:-1, :-1], c.rank, c.tolerance, c.ridge)
        turned = whiten.T @ (products[:-1, 1:] - products[:-1, :-1]) @ unwhiten
        fitted = np.eye(whiten.shape[1]) + turned
        values, modes = np.linalg.eig(fitted)
        now = whiten.T @ products[:-1, -1]
        factors = np.array([_factor(v, horizon, history.window, history.open_steps) for v in values])
        moved = (modes * factors) @ np.linalg.pinv(modes) @ now
        weights = np.append(whiten @ moved.real, 0.0)
        length = norm_of(products, weights)
        limit = straight * float(np.sqrt(products.diagonal().max()))
        if length > limit:
            weights *= limit / length
        return Prediction(combine(steps, weights, history), horizon, _quality(products, whiten, fitted))

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def _basis(
    products: NDArray[np.float64], rank: int, tolerance: float, ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights that make an orthonormal basis of the vectors, and those of its ridge pseudo-inverse."""
    squares, vectors = np.linalg.eigh(products)
    keep = [i for i in reversed(range(len(squares))) if squares[i] > tolerance**2 * squares[-1]][:rank]
    sizes, vectors = np.sqrt(squares[keep]), vectors[:, keep]
    return vectors / sizes, vectors * (sizes / (sizes**2 + ridge * sizes[0] ** 2))


def _factor(value: complex, horizon: float, window: int, since: int) -> complex:
    """Displacement in `horizon` steps over the newest window displacement, along one mode."""
    if value.real < 0.0:
        return 0.0
    value = complex(value) / max(1.0, abs(value))
    mu = value ** (1.0 / window)
    shift = mu ** (since + window - 1) * window / sum(mu**i for i in range(window))
    if abs(1.0 - value) < 1e-9:
        return shift * horizon / window
    return shift * value * (1.0 - mu**horizon) / (1.0 - value)


def _quality(
    products: NDArray[np.float64], whiten: NDArray[np.float64], fitted: NDArray[np.float64]
) -> float:
    """Share of the displacements' squares that the map explains, in [0, 1]."""
    older, newer = whiten.T @ products[:-1, :-1], whiten.T @ products[:-1, 1:]
    whole = float(np.trace(products[1:, 1:]))
    missed = whole - float(np.sum(newer**2)) + float(np.sum((newer - fitted @ older) ** 2))
    return min(1.0, max(0.0, 1.0 - missed / whole)) if whole > 0.0 else 0.0
