"""The operations on buckets that a set of kernels must offer."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Array, Buckets, ParamGroup

__all__ = ["EncodedBuckets", "KernelSet", "Runs"]


Runs = Sequence[tuple[ParamGroup, int, slice]]
"""``(group, bucket, slice)`` of contiguous stretches of one group, as `ParamLayout.group_slices` gives."""


@attrs.frozen
class EncodedBuckets:
    """Buckets in fewer bytes (F65).

    Attributes:
        dtype: ``"bfloat16"`` or ``"int8"``.
        codes: One 1-D array per bucket: bfloat16 (uint16 bit patterns where the namespace has no bfloat16)
            or int8.
        scales: One 1-D float32 array per bucket, a scale for each block of 256 numbers; empty for bfloat16.
    """

    dtype: str
    codes: Buckets
    scales: Buckets = ()


@runtime_checkable
class KernelSet(Protocol):
    """Fused operations on buckets; `hybridcore.kernels.ReferenceKernels` says what each one must give.

    No operation writes to its arguments, so that one that fails can be repeated by the reference.
    Operations that give Python numbers wait for the device once; all others only queue work on the
    framework's current stream. Where they must not be trusted to be right or fast, the engine measures:
    see `hybridcore.kernels.choose`.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]

    def supports(self, xp: ModuleType, device: str, dtype: str) -> bool:
        """Whether arrays of this namespace, on this device and of this dtype, can be worked on here."""
        ...

    def products(self, a: Buckets, b: Buckets, xp: ModuleType) -> tuple[float, float, float]:
        """``|a|^2``, ``|b|^2`` and ``a . b``."""
        ...

    def distance(self, a: Buckets, b: Buckets, xp: ModuleType) -> float:
        """``|a - b|``."""
        ...

    def gram(self, vectors: Sequence[Buckets], xp: ModuleType) -> NDArray[np.float64]:
        """Inner products of all pairs, shape (k, k)."""
        ...

    def combine(self, vectors: Sequence[Buckets], weights: Sequence[float], xp: ModuleType) -> Buckets:
        """Sum of ``weights[i] * vectors[i]``, new buckets."""
        ...

    def window_mean(
        self, total: Buckets, count: int, previous: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, Buckets | None]:
        """Mean ``total / count`` of a window and its displacement from the `previous` window's mean."""
        ...

    def displace(
        self, newer: Buckets, older: Buckets, last: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, tuple[float, float, float] | None]:
        """``d = newer - older``, and with `last` also ``|d|^2``, ``|last|^2`` and ``d . last``."""
        ...

    def run_norms(self, sets: Sequence[Buckets], runs: Runs, xp: ModuleType) -> list[list[float]]:
        """Euclidean norm of each run, a list for each set of buckets."""
        ...

    def encode(self, buckets: Buckets, dtype: str, seed: int, xp: ModuleType) -> EncodedBuckets:
        """Buckets as ``"bfloat16"`` (nearest, ties to even) or ``"int8"`` (stochastic rounding by `seed`)."""
        ...

    def decode(self, encoded: EncodedBuckets, xp: ModuleType) -> Buckets:
        """Float32 buckets again."""
        ...

    def compress(
        self, matrix: Array, rank: int, test: Array, iterations: int, xp: ModuleType
    ) -> tuple[Array, Array]:
        """Factors (m, r) and (r, n) whose product is close to `matrix` (m, n).

        `test` is a Gaussian matrix (n, k) on the matrix' device, r = min(rank, k); the range is found from
        it after so many power iterations.
        """
        ...
