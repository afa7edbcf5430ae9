"""Kernels of a run on many processes: norms and inner products are those of the whole model (F71)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hybridcore.errors import RankError
from hybridcore.kernels.chosen import ChosenKernels
from hybridcore.kernels.reference import REFERENCE
from hybridcore.layout import Array, Buckets
from hybridcore.protocols import API_VERSION, EncodedBuckets, Ensemble, RankedAdapter, Runs

__all__ = ["RankedKernels"]

_ROUNDING = 1e-3
"""Relative difference of two ranks' norms that no order of summation explains."""


class RankedKernels:
    """A kernel set whose results that decide something are the same on every rank.

    Numbers are gathered in one collective per call; arrays stay where they are.

    Args:
        kernels: Works on this rank's buckets.
        ranks: Gathers.
    """

    name: ClassVar[str] = "ranked"
    api_version: ClassVar[int] = API_VERSION

    def __init__(self, kernels: ChosenKernels, ranks: RankedAdapter) -> None:
        self._kernels, self._ranks = kernels, ranks

    def supports(self, xp: ModuleType, device: str, dtype: str) -> bool:
        """What the kernels of this rank support."""
        return self._kernels.supports(xp, device, dtype)

    @staticmethod
    def add_up(ranks: RankedAdapter, products: Sequence[float]) -> list[float]:
        """Inner products over the whole model, each shard of it counted once.

        Raises:
            RankError: Ranks that hold the same weights do not find the same numbers.
        """
        rows = ranks.gather_scalars(products)
        count = len(rows)
        if ranks.copies == count and not _alike(rows):
            raise RankError(
                "the weights of the processes have drifted apart",
                where="norms of the weights and their changes",
                got=[float(x) for x in rows[:, 0]],
                expected="the same number on every rank, up to rounding",
                fix="start again from a checkpoint; let only the optimizer and the engine change weights",
            )
        return [float(x) for x in rows.sum(axis=0) / ranks.copies]

    def _sum(self, *products: float) -> list[float]:
        return self.add_up(self._ranks, products)

    def products(self, a: Buckets, b: Buckets, xp: ModuleType) -> tuple[float, float, float]:
        """``|a|^2``, ``|b|^2`` and ``a . b``."""
        first, second, shared = self._sum(*self._kernels.products(a, b, xp))
        return first, second, shared

    def distance(self, a: Buckets, b: Buckets, xp: ModuleType) -> float:
        """``|a - b|``."""
        return math.sqrt(self._sum(self._kernels.distance(a, b, xp) ** 2)[0])

    def gram(self, vectors: Sequence[Buckets], xp: ModuleType) -> NDArray[np.float64]:
        """Inner products of all pairs, shape (k, k)."""
        found = self._kernels.gram(vectors, xp)
        return np.asarray(self._sum(*found.ravel()), dtype=np.float64).reshape(found.shape)

    def combine(self, vectors: Sequence[Buckets], weights: Sequence[float], xp: ModuleType) -> Buckets:
        """Sum of ``weights[i] * vectors[i]``, new buckets."""
        return self._kernels.combine(vectors, weights, xp)

    def window_mean(
        self, total: Buckets, count: int, previous: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, Buckets | None]:
        """Mean of a window and its displacement from the one before."""
        return self._kernels.window_mean(total, count, previous, xp)

    def displace(
        self, newer: Buckets, older: Buckets, last: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, tuple[float, float, float] | None]:
        """A displacement and its inner products with the one before."""
        step, found = self._kernels.displace(newer, older, last, xp)
        if found is None:
            return step, None
        first, second, shared = self._sum(*found)
        return step, (first, second, shared)

    def run_norms(self, sets: Sequence[Buckets], runs: Runs, xp: ModuleType) -> list[list[float]]:
        """Euclidean norm of each run, a list for each set of buckets."""
        found = self._kernels.run_norms(sets, runs, xp)
        norms = [math.sqrt(s) for s in self._sum(*(n * n for norms in found for n in norms))]
        return [norms[i * len(runs) : (i + 1) * len(runs)] for i in range(len(sets))]

    def encode(self, buckets: Buckets, dtype: str, seed: int, xp: ModuleType) -> EncodedBuckets:
        """Buckets in fewer bytes."""
        return self._kernels.encode(buckets, dtype, seed, xp)

    def decode(self, encoded: EncodedBuckets, xp: ModuleType) -> Buckets:
        """Float32 buckets again."""
        return self._kernels.decode(encoded, xp)

    def compress(
        self, matrix: Array, rank: int, test: Array, iterations: int, xp: ModuleType
    ) -> tuple[Array, Array]:
        """Low-rank factors of a matrix."""
        return self._kernels.compress(matrix, rank, test, iterations, xp)

    def rollout(
        self,
        models: Ensemble,
        features: NDArray[Any],
        actions: NDArray[Any],
        ahead: NDArray[Any],
        noise: NDArray[Any],
        xp: ModuleType,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Paths of an ensemble, by the reference: all ranks must find the same, whatever each chose."""
        return REFERENCE.rollout(models, features, actions, ahead, noise, xp)


def _alike(rows: NDArray[np.float64]) -> bool:
    """Whether all rows are the first one up to rounding; inner products may cancel, so by the largest."""
    finite = np.isfinite(rows)
    if not (finite == finite[0]).all():
        return False
    values = np.where(finite, rows, 0.0)
    scale = float(np.abs(values).max()) if values.size else 0.0
    return bool((np.abs(values - values[0]) <= _ROUNDING * scale).all())
