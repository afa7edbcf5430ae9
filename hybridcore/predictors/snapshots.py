"""Algebra on a few snapshots of the weights: differences, inner products and combinations."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from hybridcore.errors import PredictionError
from hybridcore.history import dot
from hybridcore.layout import Buckets

__all__ = ["combine", "differences", "gram", "norm_of"]


def differences(snapshots: Sequence[Buckets]) -> list[Buckets]:
    """Differences of successive snapshots, oldest first.

    Example:
        >>> differences([(1.0,), (3.0,), (4.0,)])
        [(2.0,), (1.0,)]
    """
    pairs = zip(snapshots[1:], snapshots[:-1], strict=True)
    return [tuple(a - b for a, b in zip(newer, older, strict=True)) for newer, older in pairs]


def gram(vectors: Sequence[Buckets], xp: ModuleType) -> NDArray[np.float64]:
    """Inner products of all pairs, shape (k, k).

    Raises:
        PredictionError: The vectors are not finite.
    """
    count = len(vectors)
    products = np.zeros((count, count))
    for i in range(count):
        for j in range(i + 1):
            products[i, j] = products[j, i] = dot(vectors[i], vectors[j], xp)
    if not np.isfinite(products).all():
        raise PredictionError(
            "the recent path of the weights is not finite",
            where="predictor",
            expected="finite window means",
            fix="lower the learning rate, or the horizon",
        )
    return products


def combine(vectors: Sequence[Buckets], weights: Sequence[float] | NDArray[np.float64]) -> Buckets:
    """Sum of ``weights[i] * vectors[i]``, new buckets.

    Example:
        >>> combine([(1.0,), (3.0,)], [2.0, -1.0])
        (-1.0,)
    """
    factors = [float(w) for w in weights]
    total: Buckets = tuple(b * factors[0] for b in vectors[0])
    for vector, factor in zip(vectors[1:], factors[1:], strict=True):
        total = tuple(t + b * factor for t, b in zip(total, vector, strict=True))
    return total


def norm_of(products: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Norm of ``combine(vectors, weights)`` from the inner products of the vectors.

    Example:
        >>> norm_of(np.eye(2), np.array([3.0, 4.0]))
        5.0
    """
    return float(np.sqrt(max(0.0, float(weights @ products @ weights))))
