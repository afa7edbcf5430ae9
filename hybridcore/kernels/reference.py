"""The kernel set `reference`: every fused operation in plain Array API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hybridcore.kernels import encoding, lowrank
from hybridcore.kernels.host import to_numbers
from hybridcore.kernels.rollout import rollout
from hybridcore.layout import Array, Buckets
from hybridcore.protocols import API_VERSION, EncodedBuckets, Ensemble, Runs

__all__ = ["REFERENCE", "ReferenceKernels"]


class ReferenceKernels:
    """What each operation of `hybridcore.protocols.KernelSet` must give; works on every array namespace.

    Example:
        >>> import array_api_compat.numpy as xp
        >>> a, b = (xp.asarray([3.0, 4.0]),), (xp.asarray([1.0, 0.0]),)
        >>> ReferenceKernels().products(a, b, xp)
        (25.0, 1.0, 3.0)
    """

    name: ClassVar[str] = "reference"
    api_version: ClassVar[int] = API_VERSION

    def supports(self, xp: ModuleType, device: str, dtype: str) -> bool:
        """Every namespace, device and dtype."""
        return True

    def products(self, a: Buckets, b: Buckets, xp: ModuleType) -> tuple[float, float, float]:
        """``|a|^2``, ``|b|^2`` and ``a . b``."""
        first, second, shared = _dots([(a, a), (b, b), (a, b)], xp)
        return first, second, shared

    def distance(self, a: Buckets, b: Buckets, xp: ModuleType) -> float:
        """``|a - b|``."""
        gap = tuple(x - y for x, y in zip(a, b, strict=True))
        return math.sqrt(_dots([(gap, gap)], xp)[0])

    def gram(self, vectors: Sequence[Buckets], xp: ModuleType) -> NDArray[np.float64]:
        """Inner products of all pairs, shape (k, k)."""
        count = len(vectors)
        products = np.zeros((count, count))
        places = [(i, j) for i in range(count) for j in range(i + 1)]
        found = _dots([(vectors[i], vectors[j]) for i, j in places], xp)
        for (i, j), product in zip(places, found, strict=True):
            products[i, j] = products[j, i] = product
        return products

    def combine(self, vectors: Sequence[Buckets], weights: Sequence[float], xp: ModuleType) -> Buckets:
        """Sum of ``weights[i] * vectors[i]``, new buckets."""
        factors = [float(w) for w in weights]
        total: Buckets = tuple(b * factors[0] for b in vectors[0])
        for vector, factor in zip(vectors[1:], factors[1:], strict=True):
            total = tuple(t + b * factor for t, b in zip(total, vector, strict=True))
        return total

    def window_mean(
        self, total: Buckets, count: int, previous: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, Buckets | None]:
        """Mean ``total / count`` of a window and its displacement from the `previous` window's mean."""
        scale = 1.0 / count
        mean = tuple(b * scale for b in total)
        if previous is None:
            return mean, None
        return mean, tuple(m - p for m, p in zip(mean, previous, strict=True))

    def displace(
        self, newer: Buckets, older: Buckets, last: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, tuple[float, float, float] | None]:
        """``d = newer - older``, and with `last` also ``|d|^2``, ``|last|^2`` and ``d . last``."""
        step = tuple(a - b for a, b in zip(newer, older, strict=True))
        return step, None if last is None else self.products(step, last, xp)

    def run_norms(self, sets: Sequence[Buckets], runs: Runs, xp: ModuleType) -> list[list[float]]:
        """Euclidean norm of each run, a list for each set of buckets; all are waited for at once."""
        parts = [buckets[bucket][part] for buckets in sets for _, bucket, part in runs]
        norms = to_numbers([xp.linalg.vector_norm(part) for part in parts], xp)
        return [norms[i * len(runs) : (i + 1) * len(runs)] for i in range(len(sets))]

    def encode(self, buckets: Buckets, dtype: str, seed: int, xp: ModuleType) -> EncodedBuckets:
        """Buckets in 2 bytes or about 1 byte per number; see `hybridcore.kernels.encoding`."""
        return encoding.encode(buckets, dtype, seed, xp)

    def decode(self, encoded: EncodedBuckets, xp: ModuleType) -> Buckets:
        """Float32 buckets again."""
        return encoding.decode(encoded, xp)

    def compress(
        self, matrix: Array, rank: int, test: Array, iterations: int, xp: ModuleType
    ) -> tuple[Array, Array]:
        """Randomised low-rank factors; see `hybridcore.kernels.lowrank`."""
        return lowrank.compress(matrix, rank, test, iterations, xp)

    def rollout(
        self,
        models: Ensemble,
        features: NDArray[Any],
        actions: NDArray[Any],
        ahead: NDArray[Any],
        noise: NDArray[Any],
        xp: ModuleType,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Paths of an ensemble of recurrent models; see `hybridcore.kernels.rollout`."""
        return rollout(models, features, actions, ahead, noise, xp)


REFERENCE = ReferenceKernels()
"""The one instance; it has no state."""


def _dots(pairs: Sequence[tuple[Buckets, Buckets]], xp: ModuleType) -> list[float]:
    """Inner products as Python floats (`matmul` is the quickest on every backend)."""
    counts = [len(a) for a, _ in pairs]
    parts = to_numbers([xp.matmul(x, y) for a, b in pairs for x, y in zip(a, b, strict=True)], xp)
    ends = list(accumulate(counts))
    return [sum(parts[end - count : end]) for end, count in zip(ends, counts, strict=True)]
