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

from hybridcore.layout import Array, Buckets, ParamLayout

__all__ = ["CompressedBuckets", "LowRank", "compress_buckets", "low_rank"]

_OVERSAMPLE = 8
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
    matrix: Array, rank: int, xp: ModuleType, rng: np.random.Generator, *, power_iterations: int = 2
) -> LowRank:
    """Nearly the best rank-r approximation of a matrix, without its full SVD.

    Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review 2011): the range of A is
    found from ``Y = (A A^T)^q A G`` with a Gaussian G of r + 8 columns (algorithm 4.4, QR after every
    product), then ``B = Q^T A`` is small and its SVD is cut to rank r (algorithm 5.1). With q power
    iterations the expected error lies within ``(1 + eps)`` of the optimal one, where eps falls
    geometrically in q (theorem 10.7 and section 10.4). PowerSGD (Vogels et al., NeurIPS 2019) is the case
    q = 0 with a warm start.

    Args:
        matrix: Shape (m, n), float32 or float64.
        rank: Rank r, at least 1; cut to ``min(m, n)``.
        xp: Array namespace of the matrix.
        rng: Draws G.
        power_iterations: q.

    Returns:
        The factors; the error is measured, not estimated.

    Example:
        >>> from array_api_compat import numpy as xp
        >>> matrix = xp.asarray(np.outer([1.0, 2.0], [3.0, 4.0, 5.0]), dtype=xp.float32)
        >>> found = low_rank(matrix, 1, xp, np.random.default_rng(0))
        >>> found.nbytes, found.error < 1e-5
        (20, True)
    """
    m, n = (int(s) for s in matrix.shape)
    rank = max(1, min(rank, m, n))
    columns = min(rank + _OVERSAMPLE, m, n)
    sketch = rng.standard_normal((n, columns)).astype(np.float32)
    gaussian = xp.asarray(sketch, dtype=matrix.dtype, device=matrix.device)
    transposed = xp.matrix_transpose(matrix)
    basis = xp.linalg.qr(xp.matmul(matrix, gaussian))[0]
    for _ in range(power_iterations):
        other = xp.linalg.qr(xp.matmul(transposed, basis))[0]
        basis = xp.linalg.qr(xp.matmul(matrix, other))[0]
    u, s, vt = xp.linalg.svd(xp.matmul(xp.matrix_transpose(basis), matrix), full_matrices=False)
    left = xp.matmul(basis, u[:, :rank] * s[:rank])
    right = vt[:rank, :]
    error = float(xp.linalg.vector_norm(matrix - xp.matmul(left, right)))
    return LowRank(left, right, error, float(xp.linalg.vector_norm(matrix)))


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
    buckets: Buckets, layout: ParamLayout, rank: int, xp: ModuleType, rng: np.random.Generator
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
    squares = missing = 0.0
    for p in layout.params:
        values = buckets[p.bucket][p.offset : p.stop]
        rows = p.shape[0] if len(p.shape) >= 2 else 1
        columns = p.size // max(rows, 1)
        if min(rows, columns) > 1 and rank * (rows + columns) < p.size:
            found = low_rank(xp.reshape(values, (rows, columns)), rank, xp, rng)
            parts.append((p.bucket, found))
            squares += found.norm**2
            missing += found.error**2
        else:
            parts.append((p.bucket, xp.asarray(values, copy=True)))
            squares += float(xp.linalg.vector_norm(values)) ** 2
    return CompressedBuckets(tuple(parts), layout.bucket_sizes, math.sqrt(missing), math.sqrt(squares))
