"""Predictor `subspace-newton`: a Newton step in the span of recent displacements, from measured losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import between
from hybridcore.errors import PredictionError
from hybridcore.history import History
from hybridcore.layout import Buckets, ParamLayout
from hybridcore.predictors.snapshots import combine, differences, gram, length_of
from hybridcore.protocols import API_VERSION, Prediction, StepRecord

__all__ = ["SubspaceNewton", "orthonormal"]

Matrix = NDArray[np.float64]


@attrs.frozen(kw_only=True)
class SubspaceNewtonConfig:
    """Table ``[predictor.subspace-newton]``.

    Attributes:
        dimensions: Directions k; a prediction takes 1 + 2k + k (k - 1) / 2 probes.
        spread: Distance of the measured points, over the length of the drift's jump.
        trust: Longest change, over the length of the drift's jump.
        damping: Least curvature assumed, over the largest one measured.
    """

    dimensions: int = attrs.field(default=2, validator=between(1, 4))
    spread: float = attrs.field(default=0.5, validator=between(0.0, low_open=True))
    trust: float = attrs.field(default=2.0, validator=between(0.0, low_open=True))
    damping: float = attrs.field(default=1e-3, validator=between(0.0, low_open=True))


class SubspaceNewton:
    """Minimises a quadratic model of the probe loss in the span of the newest displacements.

    Directions are the newest window displacement, the last update and older displacements, orthonormalised.
    Central differences of the mean probe loss give gradient g and curvature B in them. With the
    eigenvalues of B clipped to at least `damping` times the largest, the change is
    ``z = -(B + s I)^-1 g`` with the least s >= 0 that keeps it within the trust radius (Nocedal and Wright,
    Numerical Optimization, chapter 4). It is refused where the measured model sees no descent. Lengths are
    relative to the drift's own jump of H steps, ``H |d| / W``. Without probes it is the drift.

    Example:
        >>> SubspaceNewton().config.dimensions
        2
    """

    name: ClassVar[str] = "subspace-newton"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"last-update", "window-means"})
    Config: ClassVar[type] = SubspaceNewtonConfig

    def __init__(self, config: SubspaceNewtonConfig | None = None) -> None:
        self.config = config or SubspaceNewtonConfig()
        self.windows = max(2, self.config.dimensions)

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Nothing is kept beyond the history."""

    def observe(self, record: StepRecord) -> None:
        """Nothing is learned from scalars."""

    def ready(self, history: History) -> bool:
        """Whether the displacements and the last update are there."""
        wanted = max(2, min(self.windows, history.windows))
        return history.has_update and len(history.window_means) >= wanted

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """The drift, where nothing can be measured."""
        return Prediction(history.displacement(), horizon, 0.0, scale=horizon / history.window)

    def predict_with(
        self, history: History, horizon: float, xp: ModuleType, measure: Callable[[Buckets], float]
    ) -> Prediction:
        """Measure the loss around the weights and go to the model's minimum.

        Raises:
            PredictionError: The measured losses are not finite, or promise no descent.
        """
        c = self.config
        newest, *older = reversed(differences(history.window_means[-self.windows :]))
        vectors = [newest, history.last_update(), *older][: c.dimensions]
        length = abs(horizon) * length_of(newest, xp, history.kernels) / history.window
        whiten = orthonormal(gram(vectors, xp, history.kernels))
        if length == 0.0 or whiten.shape[1] == 0:
            return Prediction(newest, horizon, 0.0, scale=0.0)
        gradient, curvature = _quadratic(
            lambda z: measure(combine(vectors, whiten @ z, history)), whiten.shape[1], c.spread * length
        )
        step = _minimise(gradient, curvature, c.damping, c.trust * length)
        change = float(gradient @ step + 0.5 * step @ curvature @ step)
        if not change < 0.0:
            raise PredictionError(
                "the measured losses promise no descent",
                where="predictor.subspace-newton",
                got=f"a change of {change:.3g}",
                expected="a negative one",
                fix="nothing: the jump is refused; a larger predictor.subspace-newton.spread sees past noise",
            )
        return Prediction(combine(vectors, whiten @ step, history), horizon, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def orthonormal(products: Matrix) -> Matrix:
    """Weights of the vectors, one column per direction of an orthonormal basis of their span."""
    sizes = np.sqrt(products.diagonal())
    scales = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0.0)
    squares, turned = np.linalg.eigh(products * np.outer(scales, scales))
    keep = squares > 1e-5  # float32 inner products carry six to seven digits
    weights: Matrix = scales[:, None] * turned[:, keep] / np.sqrt(squares[keep])
    return weights


def _quadratic(loss: Callable[[Matrix], float], size: int, radius: float) -> tuple[Matrix, Matrix]:
    """Gradient and curvature at zero, by central differences; 1 + 2k + k (k - 1) / 2 losses."""
    points = radius * np.eye(size)
    here = loss(np.zeros(size))
    ahead, behind = np.array([[loss(p), loss(-p)] for p in points]).T
    curvature = np.diag((ahead - 2.0 * here + behind) / radius**2)
    for i in range(size):
        for j in range(i):
            both = loss(points[i] + points[j]) - ahead[i] - ahead[j] + here
            curvature[i, j] = curvature[j, i] = both / radius**2
    return (ahead - behind) / (2.0 * radius), curvature


def _minimise(gradient: Matrix, curvature: Matrix, damping: float, trust: float) -> Matrix:
    """Minimum of the model with clipped curvature inside the trust radius; zeros where it is not finite."""
    if not (np.isfinite(gradient).all() and np.isfinite(curvature).all()):
        return np.zeros_like(gradient)
    values, vectors = np.linalg.eigh(curvature)
    values = np.maximum(values, max(damping * float(np.abs(values).max()), 1e-30))
    slopes = vectors.T @ gradient
    low, high = 0.0, float(np.linalg.norm(slopes)) / trust
    if np.linalg.norm(slopes / values) > trust:
        for _ in range(60):
            shift = 0.5 * (low + high)
            low, high = (shift, high) if np.linalg.norm(slopes / (values + shift)) > trust else (low, shift)
        values = values + high
    step: Matrix = -vectors @ (slopes / values)
    return step
