"""Randomised low-rank factors of a matrix."""

from __future__ import annotations

from types import ModuleType

from hybridcore.layout import Array

__all__ = ["OVERSAMPLING", "compress"]

OVERSAMPLING = 8
"""Columns of the test matrix beyond the rank (Halko, Martinsson and Tropp advise 5 to 10)."""


def compress(matrix: Array, rank: int, test: Array, iterations: int, xp: ModuleType) -> tuple[Array, Array]:
    """Factors whose product is near the best approximation of `matrix` of that rank.

    The range of A is found from ``Y = (A A^T)^q A G`` with a Gaussian G, by a QR factorisation after every
    product, then ``B = Q^T A`` is small and its singular value decomposition is cut to the rank: Halko,
    Martinsson and Tropp, "Finding structure with randomness" (SIAM Review 2011), algorithms 4.4 and 5.1.

    Args:
        matrix: A, shape (m, n), float32 or float64; the factors have its dtype.
        rank: Largest rank.
        test: G, shape (n, k) with k at most min(m, n), in the dtype of the matrix.
        iterations: Power iterations q.
        xp: Array namespace.

    Returns:
        Left factor with orthogonal columns, scaled by the singular values, shape (m, r), and right factor
        with orthonormal rows, shape (r, n); r = min(rank, k).

    Example:
        >>> import array_api_compat.numpy as xp
        >>> matrix = xp.asarray([[4.0, 5.0], [8.0, 10.0], [12.0, 15.0]])
        >>> left, right = compress(matrix, 1, xp.asarray([[1.0], [0.5]]), 1, xp)
        >>> bool(xp.max(xp.abs(left @ right - matrix)) < 1e-12)
        True
    """
    transposed = xp.matrix_transpose(matrix)
    basis = xp.linalg.qr(xp.matmul(matrix, test))[0]
    for _ in range(iterations):
        other = xp.linalg.qr(xp.matmul(transposed, basis))[0]
        basis = xp.linalg.qr(xp.matmul(matrix, other))[0]
    u, s, vt = xp.linalg.svd(xp.matmul(xp.matrix_transpose(basis), matrix), full_matrices=False)
    return xp.matmul(basis, u[:, :rank] * s[:rank]), vt[:rank, :]
