"""Low-rank copies of weight-sized arrays: randomised range finder and truncated SVD (F26)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import attrs
import numpy as np
from array_api_compat import to_device
from numpy.typing import NDArray

from hybridcore.kernels.host import to_numbers
from hybridcore.kernels.lowrank import OVERSAMPLING
from hybridcore.kernels.reference import REFERENCE
from hybridcore.layout import Array, Buckets, ParamLayout
from hybridcore.protocols import KernelSet

__all__ = ["CompressedBuckets", "LowRank", "compress_buckets", "low_rank"]

POWER_ITERATIONS = 2
_TINY = 1e-30
_DL_CPU = 1


@attrs.frozen
class LowRank:
    """A matrix as the product of two thin ones.

    Attributes:
        left: Shape (m, r), in the dtype of buckets.
        right: Shape (r, n), the same.
        error: Frobenius norm of what is missing.
        norm: Frobenius norm of the matrix.
    """

    left: Array
    right: Array
    error: float
    norm: float

    @property
    def nbytes(self) -> int:
        """Bytes of both factors."""
        m, r = self.left.shape
        return _itemsize(self.left) * int(r) * (int(m) + int(self.right.shape[1]))

    def expand(self, xp: ModuleType) -> Array:
        """The matrix, shape (m, n)."""
        return xp.matmul(self.left, self.right)


def low_rank(
    matrix: Array,
    rank: int,
    xp: ModuleType,
    rng: np.random.Generator,
    *,
    power_iterations: int = POWER_ITERATIONS,
    kernels: KernelSet = REFERENCE,
) -> LowRank:
    """Nearly the best rank-r approximation of a matrix, without its full SVD.

    The range finder of `hybridcore.kernels.lowrank.compress` with a test matrix of r + 8 columns. With q
    power iterations the expected error lies within ``(1 + eps)`` of the optimal one, where eps falls
    geometrically in q (theorem 10.7 and section 10.4). PowerSGD (Vogels et al., NeurIPS 2019) is the case
    q = 0 with a warm start.

    Args:
        matrix: Shape (m, n), float32 or float64.
        rank: Rank r, at least 1; cut to ``min(m, n)``.
        xp: Array namespace of the matrix.
        rng: Draws G.
        power_iterations: q.
        kernels: Who finds the factors.

    Returns:
        The factors; the error is measured, not estimated.

    Example:
        >>> from array_api_compat import numpy as xp
        >>> matrix = xp.asarray(np.outer([1.0, 2.0], [3.0, 4.0, 5.0]), dtype=xp.float32)
        >>> found = low_rank(matrix, 1, xp, np.random.default_rng(0))
        >>> found.nbytes, found.error < 1e-5
        (20, True)
    """
    left, right, norms = _factored(matrix, rank, xp, rng, power_iterations, kernels)
    error, norm = to_numbers(norms, xp)
    return LowRank(left, right, error, norm)


def _factored(
    matrix: Array, rank: int, xp: ModuleType, rng: np.random.Generator, iterations: int, kernels: KernelSet
) -> tuple[Array, Array, list[Array]]:
    """Factors, and the norms of what is missing and of the matrix, still on the device."""
    m, n = (int(s) for s in matrix.shape)
    rank = max(1, min(rank, m, n))
    columns = min(rank + OVERSAMPLING, m, n)
    sketch = rng.standard_normal((n, columns)).astype(np.float32)
    gaussian = xp.asarray(sketch, dtype=matrix.dtype, device=matrix.device)
    left, right = kernels.compress(matrix, rank, gaussian, iterations, xp)
    missing = xp.linalg.vector_norm(matrix - xp.matmul(left, right))
    return left, right, [missing, xp.linalg.vector_norm(matrix)]


def _itemsize(array: Array) -> int:
    """Bytes of a number: 8 or 4."""
    return 8 if str(array.dtype).endswith("float64") else 4


def _to_numpy(array: Array) -> NDArray[Any]:
    if not isinstance(array, np.ndarray):
        on_cpu = array.__dlpack_device__()[0] == _DL_CPU
        array = np.from_dlpack(array if on_cpu else to_device(array, "cpu"))
    return np.array(array)


def _map_part(part: LowRank | Array, function: Callable[[Array], Array]) -> LowRank | Array:
    if isinstance(part, LowRank):
        return attrs.evolve(part, left=function(part.left), right=function(part.right))
    return function(part)


@attrs.frozen
class CompressedBuckets:
    """Buckets with every matrix parameter in low rank and every other parameter whole.

    Attributes:
        parts: One entry per parameter of the layout: factors, or the values themselves.
        sizes: Elements per bucket.
        error: Euclidean norm of what is missing.
        norm: Euclidean norm of the buckets.
    """

    parts: tuple[tuple[int, LowRank | Array], ...]
    sizes: tuple[int, ...]
    error: float
    norm: float

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(
            p.nbytes if isinstance(p, LowRank) else _itemsize(p) * int(p.shape[0]) for _, p in self.parts
        )

    @property
    def relative_error(self) -> float:
        """Missing norm over whole norm, in [0, 1]."""
        return self.error / self.norm if self.norm > _TINY else 0.0

    def expand(self, xp: ModuleType, devices: Sequence[Any] | None = None) -> Buckets:
        """The buckets, in their own dtype.

        Args:
            xp: Array namespace of the result.
            devices: Device per bucket; where None, the parts must be arrays of `xp` already.
        """
        pieces: list[list[Array]] = [[] for _ in self.sizes]
        for bucket, part in self.parts:
            if devices is not None:
                part = _map_part(part, partial(xp.asarray, device=devices[bucket]))
            whole = xp.reshape(part.expand(xp), (-1,)) if isinstance(part, LowRank) else part
            pieces[bucket].append(whole)
        return tuple(xp.concat(p) for p in pieces)

    def to_host(self) -> CompressedBuckets:
        """The same in NumPy arrays."""
        return attrs.evolve(self, parts=tuple((b, _map_part(p, _to_numpy)) for b, p in self.parts))


def compress_buckets(
    buckets: Buckets,
    layout: ParamLayout,
    rank: int,
    xp: ModuleType,
    rng: np.random.Generator,
    kernels: KernelSet = REFERENCE,
) -> CompressedBuckets:
    """Compress weight-sized buckets parameter by parameter.

    A parameter of two or more axes counts as a matrix of its first axis by the rest, as in PowerSGD. Where
    factors would take no less room than the parameter, it is kept whole.

    Args:
        buckets: One array per bucket.
        layout: Their layout.
        rank: Rank of each matrix.
        xp: Array namespace.
        rng: For `low_rank`.
        kernels: Who finds the factors.

    Raises:
        DeltaError: Buckets do not fit the layout.

    Example:
        >>> from array_api_compat import numpy as xp
        >>> layout = ParamLayout.plan([("w", (64, 64), "float32", "cpu", None)])
        >>> ones = (xp.ones(64 * 64, dtype=xp.float32),)
        >>> found = compress_buckets(ones, layout, 1, xp, np.random.default_rng(0))
        >>> found.nbytes, layout.nbytes
        (512, 16384)
    """
    layout.check(buckets)
    parts: list[tuple[int, LowRank | Array]] = []
    norms: list[Array] = []
    for p in layout.params:
        values = buckets[p.bucket][p.offset : p.stop]
        rows = p.shape[0] if len(p.shape) >= 2 else 1
        columns = p.size // max(rows, 1)
        if min(rows, columns) > 1 and rank * (rows + columns) < p.size:
            matrix = xp.reshape(values, (rows, columns))
            left, right, found = _factored(matrix, rank, xp, rng, POWER_ITERATIONS, kernels)
            parts.append((p.bucket, LowRank(left, right, math.nan, math.nan)))
            norms += found
        else:
            parts.append((p.bucket, xp.asarray(values, copy=True)))
            norms.append(xp.linalg.vector_norm(values))
    # A device is waited for once, not twice per parameter.
    numbers = iter(to_numbers(norms, xp) if norms else [])
    squares = missing = 0.0
    for index, (bucket, part) in enumerate(parts):
        if isinstance(part, LowRank):
            error, norm = next(numbers), next(numbers)
            parts[index] = bucket, attrs.evolve(part, error=error, norm=norm)
            missing += error**2
        else:
            norm = next(numbers)
        squares += norm**2
    return CompressedBuckets(tuple(parts), layout.bucket_sizes, math.sqrt(missing), math.sqrt(squares))
