"""Algebra on a few snapshots of the weights: differences, inner products and combinations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hybridcore.errors import PredictionError
from hybridcore.kernels.reference import REFERENCE
from hybridcore.layout import Buckets
from hybridcore.protocols import KernelSet

if TYPE_CHECKING:
    from hybridcore.history import History

__all__ = ["combine", "differences", "gram", "length_of", "norm_of"]


def differences(snapshots: Sequence[Buckets]) -> list[Buckets]:
    """Differences of successive snapshots, oldest first.

    Example:
        >>> differences([(1.0,), (3.0,), (4.0,)])
        [(2.0,), (1.0,)]
    """
    found: list[Buckets] = []
    older: Buckets | None = None
    for newer in snapshots:  # each taken once: it may have to come from host memory
        if older is not None:
            found.append(tuple(a - b for a, b in zip(newer, older, strict=True)))
        older = newer
    return found


def gram(vectors: Sequence[Buckets], xp: ModuleType, kernels: KernelSet = REFERENCE) -> NDArray[np.float64]:
    """Inner products of all pairs, shape (k, k).

    Raises:
        PredictionError: The vectors are not finite.
    """
    products = kernels.gram(vectors, xp)
    if not np.isfinite(products).all():
        raise PredictionError(
            "the recent path of the weights is not finite",
            where="predictor",
            expected="finite window means",
            fix="lower the learning rate, or the horizon",
        )
    return products


def combine(
    vectors: Sequence[Buckets],
    weights: Sequence[float] | NDArray[np.float64],
    history: History | None = None,
) -> Buckets:
    """Sum of ``weights[i] * vectors[i]``, new buckets; by the history's kernels where it is given.

    Example:
        >>> combine([(1.0,), (3.0,)], [2.0, -1.0])
        (-1.0,)
    """
    factors = [float(w) for w in weights]
    if history is None:
        return REFERENCE.combine(vectors, factors, np)
    return history.kernels.combine(vectors, factors, history.xp)


def length_of(vector: Buckets, xp: ModuleType, kernels: KernelSet = REFERENCE) -> float:
    """Euclidean norm.

    Example:
        >>> from array_api_compat import numpy as xp
        >>> length_of((xp.asarray([3.0, 4.0]),), xp)
        5.0
    """
    return math.sqrt(float(kernels.gram([vector], xp)[0, 0]))


def norm_of(products: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Norm of ``combine(vectors, weights)`` from the inner products of the vectors.

    Example:
        >>> norm_of(np.eye(2), np.array([3.0, 4.0]))
        5.0
    """
    return float(np.sqrt(max(0.0, float(weights @ products @ weights))))
