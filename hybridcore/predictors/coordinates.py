"""Models of how a trajectory's coordinates go on; predictor `latent` picks one by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["COORDINATE_MODELS", "CoordinateModel", "LinearModel"]

Matrix = NDArray[np.float64]


class CoordinateModel(Protocol):
    """Continues a path in a few coordinates.

    The coordinates are those of an orthonormal basis of the recent displacements. The basis is made anew for
    each prediction, so what a model learns beyond one path must not depend on it.
    """

    def fit(self, steps: Matrix) -> float:
        """Learn from the displacements per window, shape (n, r), n >= 1, oldest first.

        Returns:
            How well it foretells the newest of them from the others, in [0, 1].
        """
        ...

    def extrapolate(self, windows: float) -> Matrix:
        """Displacement in so many more windows, shape (r,)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is kept from fit to fit, as plain data and arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...


class LinearModel:
    """Autoregression of orders 1 to p with coefficients that all coordinates share.

    ``y_{i+1} = a_1 y_i + ... + a_q y_{i+1-q}`` for displacements y. Coefficients come from ridge regression
    towards persistence (a_1 = 1, the others 0); the order q is the least that foretells the
    newest displacement from the others about as well as any. A linear iteration with q modes obeys such a
    recurrence exactly (Cayley and Hamilton). No displacement may exceed the longest one seen.

    Args:
        order: Largest order p.
        ridge: Pull to persistence, relative to the mean square of the regressors.

    Example:
        >>> model = LinearModel(1, 1e-9)
        >>> quality = model.fit(np.array([[4.0], [2.0], [1.0]]))
        >>> bool(abs(model.extrapolate(2.0)[0] - 0.75) < 1e-6)
        True
    """

    def __init__(self, order: int, ridge: float) -> None:
        self._order, self._ridge = order, ridge
        self._steps: Matrix = np.zeros((1, 1))
        self._coefficients: Matrix = np.ones(1)

    def fit(self, steps: Matrix) -> float:
        """Choose the order on the newest displacement, then use all of them."""
        self._steps = steps
        count, newest = len(steps), float(np.sum(steps[-1] ** 2))
        errors = {}
        for order in range(1, min(self._order, count - 2) + 1):
            foretold = _next(steps[:-1], _regress(steps[:-1], order, self._ridge))
            errors[order] = float(np.sum((foretold - steps[-1]) ** 2))
        limit = 1.1 * min(errors.values(), default=0.0) + 1e-6 * newest
        best = min((order for order, error in errors.items() if error <= limit), default=1)
        self._coefficients = _regress(steps, best, self._ridge)
        if not errors or newest == 0.0:
            return 0.0
        return max(0.0, 1.0 - errors[best] / newest)

    def extrapolate(self, windows: float) -> Matrix:
        """Roll the recurrence forward; a share of a window takes that share of its displacement."""
        if windows <= 0.0:
            back: Matrix = windows * self._steps[-1]
            return back
        limit = float(np.sqrt(np.max(np.sum(self._steps**2, axis=1))))
        path, moved, left = self._steps, np.zeros(self._steps.shape[1]), windows
        while left > 0.0:
            step = _next(path, self._coefficients)
            length = float(np.linalg.norm(step))
            if length > limit:
                step = step * (limit / length)
            moved = moved + min(left, 1.0) * step
            path = np.vstack([path, step])[-self._order :]
            left -= 1.0
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Nothing: each fit starts anew."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def _next(steps: Matrix, coefficients: Matrix) -> Matrix:
    newest_first = steps[::-1][: len(coefficients)]
    foretold: Matrix = coefficients[: len(newest_first)] @ newest_first
    return foretold


def _regress(steps: Matrix, order: int, ridge: float) -> Matrix:
    """Coefficients a_1 .. a_order, shape (order,)."""
    lags = np.stack([steps[order - lag - 1 : len(steps) - lag - 1].ravel() for lag in range(order)], axis=1)
    persistence: Matrix = np.eye(order)[0]
    if lags.size == 0 or not lags.any():
        return persistence
    wanted = steps[order:].ravel() - lags @ persistence
    squares = lags.T @ lags
    squares = squares + ridge * float(np.trace(squares)) / order * np.eye(order)
    solution: Matrix = persistence + np.linalg.lstsq(squares, lags.T @ wanted, rcond=None)[0]
    return solution


def _learned(name: str) -> Callable[[int, float], CoordinateModel]:
    """Maker of a network model; its module is imported only when one is made."""

    def make(order: int, ridge: float) -> CoordinateModel:
        module = import_module("hybridcore.predictors.coordinates_learned")
        model: CoordinateModel = getattr(module, name)(order, ridge)
        return model

    return make


COORDINATE_MODELS: dict[str, Callable[[int, float], CoordinateModel]] = {
    "linear": LinearModel,
    "mlp": _learned("MlpCoordinates"),
    "rssm": _learned("RssmCoordinates"),
}
"""Name to a function of the order and the ridge that makes a model."""
