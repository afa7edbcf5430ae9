"""Randomised low-rank factors by matrix products alone, so that cuBLAS does the work and nothing waits."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import array_api_compat

from hybridcore.kernels.lowrank import OVERSAMPLING, sketch
from hybridcore.layout import Array
from hybridcore_cupy.arrays import open_arrays
from hybridcore_cupy.device import load_cupy

__all__ = ["compress", "factors"]


def compress(matrix: Array, rank: int, seed: int, xp: ModuleType) -> tuple[Array, Array]:
    """Factors (m, r) and (r, n) of a matrix on a CUDA device; see `factors`."""
    cupy = load_cupy()
    arrays = open_arrays(matrix, xp)
    with cupy.cuda.Device(arrays.device), cupy.cuda.ExternalStream(arrays.stream, arrays.device):
        left, right = factors(cupy.from_dlpack(matrix), rank, seed, cupy)
        if array_api_compat.is_cupy_namespace(xp):
            return left, right
        # Copies into the framework's own memory; both factors are small.
        return xp.from_dlpack(left) + 0.0, xp.from_dlpack(right) + 0.0


def factors(matrix: Any, rank: int, seed: int, xp: Any) -> tuple[Any, Any]:
    """Best approximation in the range of a Gaussian sketch with one power iteration, cut to the rank.

    The scheme of Halko, Martinsson and Tropp (SIAM Review 2011) with two replacements that need no
    factorisation of tall matrices: bases are made orthonormal through the eigenvectors of their Gram matrix
    in float64 (directions below 1e-6 of the largest are left out), and the singular vectors come from
    ``B B^T`` of the projected matrix B.

    Args:
        matrix: Shape (m, n), float32.
        rank: Largest rank.
        seed: Seeds the sketch, the same as the reference's.
        xp: A module with NumPy's functions.

    Returns:
        Left factor with orthonormal columns, shape (m, r), and right factor, shape (r, n);
        r = min(rank, m, n).
    """
    rows, columns = matrix.shape
    rank = min(rank, rows, columns)
    width = min(rank + OVERSAMPLING, rows, columns)
    basis = _orthonormal(matrix @ xp.asarray(sketch(columns, width, seed)), xp)
    basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis, xp), xp)
    projected = basis.T @ matrix
    wide = projected.astype(xp.float64)
    _, vectors = xp.linalg.eigh(wide @ wide.T)
    turned = vectors[:, ::-1][:, :rank].astype(xp.float32)
    return basis @ turned, turned.T @ projected


def _orthonormal(tall: Any, xp: Any) -> Any:
    wide = tall.astype(xp.float64)
    values, vectors = xp.linalg.eigh(wide.T @ wide)
    kept = values > 1e-12 * values[-1]
    scale = xp.where(kept, 1.0 / xp.sqrt(xp.where(kept, values, 1.0)), 0.0)
    return (wide @ (vectors * scale)).astype(xp.float32)
