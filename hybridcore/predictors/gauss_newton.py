"""Predictor `gauss-newton`: linearised residuals, minimised over recent directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import between
from hybridcore.errors import PredictionError
from hybridcore.history import History
from hybridcore.layout import Buckets, ParamLayout
from hybridcore.predictors.snapshots import combine, differences, gram
from hybridcore.predictors.subspace_newton import orthonormal
from hybridcore.protocols import API_VERSION, Prediction, StepRecord

__all__ = ["GaussNewton"]

Matrix = NDArray[np.float64]
Linearise = Callable[[Sequence[Buckets]], tuple[Matrix, Matrix]]


@attrs.frozen(kw_only=True)
class GaussNewtonConfig:
    """Table ``[predictor.gauss-newton]``.

    Attributes:
        dimensions: Directions k; a prediction costs ``1 + 2k`` forward passes and one for each damping tried.
        damping: First damping, over the curvature along each direction; it adapts from there.
        tries: Dampings tried, each eight times the one before, until the loss falls.
    """

    dimensions: int = attrs.field(default=5, validator=between(1, 32))
    damping: float = attrs.field(default=1e-2, validator=between(0.0, low_open=True))
    tries: int = attrs.field(default=4, validator=between(1))


class GaussNewton:
    r"""Levenberg-Marquardt steps in the span of recent directions, for losses that are mean squares.

    With residuals r (n,) of the probe examples and their derivatives J (n, k) along orthonormal directions V,
    the change is ``V z`` with ::

        (J'J + lambda diag(J'J)) z = -J'r

    (Marquardt 1963; Nocedal and Wright, Numerical Optimization, section 10.3). The damping lambda grows
    eightfold until the measured loss falls, and shrinks fivefold after each success. Directions: the weights
    over their window mean, the differences of the window means at earlier predictions, newest first, which
    reach across jumps as conjugate directions do (Narkiss and Zibulevsky, SESOP, 2005), and while there are
    few of them the newest window displacement and the last update. Without residuals, or probe examples, it
    is the drift.

    Example:
        >>> GaussNewton().config.dimensions
        5
    """

    name: ClassVar[str] = "gauss-newton"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"last-update", "window-means"})
    Config: ClassVar[type] = GaussNewtonConfig

    def __init__(self, config: GaussNewtonConfig | None = None) -> None:
        self.config = config or GaussNewtonConfig()
        self._damping = self.config.damping
        self._means: list[Buckets] = []

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Forget the earlier means, and start from the first damping."""
        self._damping = self.config.damping
        self._means = []

    def observe(self, record: StepRecord) -> None:
        """Nothing is learned from scalars."""

    def ready(self, history: History) -> bool:
        """Whether there are two window means and the last update."""
        return history.has_update and len(history.window_means) >= 2

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """The drift, where there are no residuals."""
        return Prediction(history.displacement(), horizon, 0.0, scale=horizon / history.window)

    def predict_linearised(
        self,
        history: History,
        horizon: float,
        xp: ModuleType,
        linearise: Linearise,
        measure: Callable[[Buckets], float],
    ) -> Prediction:
        """Linearise the residuals at the weights and go to the damped minimum.

        Raises:
            PredictionError: No damping tried lowers the measured loss.
        """
        newest, mean = history.displacement(), history.window_means[-1]
        lead = tuple(w - m for w, m in zip(history.current(), mean, strict=True))
        across = differences([*self._means, mean])
        vectors = [lead, *reversed(across), newest, history.last_update()][: self.config.dimensions]
        self._means = [*self._means, tuple(b + 0.0 for b in mean)][-self.config.dimensions :]
        sizes = np.sqrt(gram_diagonal(vectors, xp))
        units = [tuple(b * (1.0 / s) for b in v) for v, s in zip(vectors, sizes, strict=True) if s > 0.0]
        if not units:
            return Prediction(newest, horizon, 0.0, scale=0.0)
        whiten = orthonormal(gram(units, xp))
        residuals, products = linearise(units)
        jacobian = products @ whiten
        here = float(np.mean(residuals**2))
        for _ in range(self.config.tries):
            step = _damped(jacobian, residuals, self._damping)
            change = combine(units, whiten @ step)
            if measure(change) < here:
                self._damping = max(self._damping / 5.0, 1e-8)
                return Prediction(change, horizon, 1.0)
            self._damping = min(8.0 * self._damping, 1e8)
        raise PredictionError(
            "no damping tried lowers the measured loss",
            where="predictor.gauss-newton",
            got=f"a loss of {here:.4g} and dampings up to {self._damping / 8.0:.3g}",
            expected="a lower loss",
            fix="nothing: the jump is refused, and the next one starts from the larger damping",
        )

    def state_dict(self) -> dict[str, Any]:
        """Damping and earlier means."""
        return {"damping": self._damping, "means": list(self._means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._damping, self._means = float(state["damping"]), list(state["means"])


def gram_diagonal(vectors: Sequence[Buckets], xp: ModuleType) -> Matrix:
    """Squared lengths of all vectors, shape (k,)."""
    return np.array([float(gram([vector], xp)[0, 0]) for vector in vectors])


def _damped(jacobian: Matrix, residuals: Matrix, damping: float) -> Matrix:
    """Minimum of the linearised mean square with Marquardt's damping; zeros where it is not finite."""
    curvature, slope = jacobian.T @ jacobian, jacobian.T @ residuals
    if not (np.isfinite(curvature).all() and np.isfinite(slope).all()):
        return np.zeros_like(slope)
    scale = curvature.diagonal()
    least = 1e-9 * float(scale.max()) + 1e-300
    damped = curvature + np.diag(damping * scale + least)
    step: Matrix = np.asarray(np.linalg.solve(damped, -slope), np.float64)
    return step
