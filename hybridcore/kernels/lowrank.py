"""Randomised low-rank factors of a matrix."""

from __future__ import annotations

from types import ModuleType

import array_api_compat
import numpy as np

from hybridcore.layout import Array

__all__ = ["OVERSAMPLING", "compress", "sketch"]

OVERSAMPLING = 8
"""Columns of the sketch beyond the rank (Halko, Martinsson and Tropp advise 5 to 10)."""


def sketch(columns: int, width: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Gaussian test matrix, shape (columns, width), float32."""
    return np.random.default_rng(seed).standard_normal((columns, width), dtype=np.float32)


def compress(matrix: Array, rank: int, seed: int, xp: ModuleType) -> tuple[Array, Array]:
    """Factors whose product is near the best approximation of `matrix` of that rank.

    The range is found from a Gaussian sketch with one power iteration, then a small singular value
    decomposition cuts it to the rank: Halko, Martinsson and Tropp, "Finding structure with randomness"
    (SIAM Review 2011), algorithms 4.4 and 5.1.

    Args:
        matrix: Shape (m, n), float32 or float64; the factors have its dtype.
        rank: Largest rank.
        seed: Seeds the sketch.
        xp: Array namespace.

    Returns:
        Left factor with orthogonal columns, scaled by the singular values, shape (m, r), and right factor
        with orthonormal rows, shape (r, n); r = min(rank, m, n).

    Example:
        >>> import array_api_compat.numpy as xp
        >>> matrix = xp.asarray(np.outer([1.0, 2.0, 3.0], [4.0, 5.0]), dtype=xp.float32)
        >>> left, right = compress(matrix, 1, 0, xp)
        >>> bool(np.allclose(left @ right, matrix, rtol=1e-5))
        True
    """
    rows, columns = int(matrix.shape[0]), int(matrix.shape[1])
    rank = min(rank, rows, columns)
    width = min(rank + OVERSAMPLING, rows, columns)
    place = {"dtype": matrix.dtype, "device": array_api_compat.device(matrix)}
    test = xp.asarray(sketch(columns, width, seed), **place)
    turned = xp.matrix_transpose(matrix)
    basis, _ = xp.linalg.qr(xp.matmul(matrix, test))
    co_basis, _ = xp.linalg.qr(xp.matmul(turned, basis))
    basis, _ = xp.linalg.qr(xp.matmul(matrix, co_basis))
    left, values, right = xp.linalg.svd(xp.matmul(xp.matrix_transpose(basis), matrix), full_matrices=False)
    return xp.matmul(basis, left[:, :rank] * values[:rank]), right[:rank, :]
