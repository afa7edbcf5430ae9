"""Randomised low-rank factors by matrix products and two small kernels, without waiting in between."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import array_api_compat

from hybridcore.layout import Array
from hybridcore_cupy.arrays import open_arrays
from hybridcore_cupy.device import kernel, launch, load_cupy
from hybridcore_cupy.passes import Pass
from hybridcore_cupy.structs import Args

__all__ = ["MOST_SIDE", "compress", "factors"]

MOST_SIDE = 40
"""Most columns of a test matrix, as in small.cu."""

Small = Callable[[str, Array], Array]
"""Runs a kernel of small.cu on a square float64 matrix."""


def compress(matrix: Array, rank: int, test: Array, iterations: int, xp: ModuleType) -> tuple[Array, Array]:
    """Factors (m, r) and (r, n) of a matrix on a CUDA device; see `factors`."""
    if not array_api_compat.is_jax_namespace(xp):
        return _factors_on(matrix, rank, test, iterations, xp)
    cupy, compat = load_cupy(), import_module("array_api_compat.cupy")  # JAX makes no float64
    found = _factors_on(cupy.from_dlpack(matrix), rank, cupy.from_dlpack(test), iterations, compat)
    cupy.cuda.get_current_stream().synchronize()  # only now may JAX use the memory of its arrays again
    left, right = (xp.from_dlpack(factor) + 0.0 for factor in found)
    return left, right


def _factors_on(
    matrix: Array, rank: int, test: Array, iterations: int, xp: ModuleType
) -> tuple[Array, Array]:
    with Pass(open_arrays(matrix, xp)) as job:

        def small(name: str, gram: Array) -> Array:
            arrays, side, block = job.arrays, int(gram.shape[0]), Args()
            out = arrays.empty((side, side), "float64")
            block.inputs[0], block.outputs[0], block.count = arrays.pointer(gram), arrays.pointer(out), side
            launch(kernel("small", name), (1, 1), block, arrays.stream, arrays.device)
            return out

        return factors(matrix, rank, test, iterations, xp, small)


def factors(
    matrix: Array, rank: int, test: Array, iterations: int, xp: ModuleType, small: Small
) -> tuple[Array, Array]:
    """Best approximation in the range of a sketch after power iterations, cut to the rank.

    The scheme of `hybridcore.kernels.lowrank` with factorisations of small matrices alone: bases are made
    orthonormal by Cholesky QR in float64 (Yamamoto, Nakatsukasa, Yanagisawa and Fukaya, "Roundoff error
    analysis of the CholeskyQR2 algorithm", ETNA 2015; the last basis twice), and singular vectors come from
    ``B B^T`` of the projected matrix B.

    Args:
        matrix: Shape (m, n), float32.
        rank: Largest rank.
        test: Gaussian matrix, shape (n, k) with k at most `MOST_SIDE`.
        iterations: Power iterations.
        xp: Array namespace.
        small: Runs ``"whiten"`` and ``"principal"`` of small.cu.

    Returns:
        Left factor with orthonormal columns, shape (m, r), and right factor, shape (r, n);
        r = min(rank, k).
    """

    def orthonormal(tall: Array) -> Array:
        wide = xp.astype(tall, xp.float64)
        turn = small("whiten", xp.matmul(xp.matrix_transpose(wide), wide))
        return xp.astype(xp.matmul(wide, turn), tall.dtype)

    across = xp.matrix_transpose(matrix)
    basis = orthonormal(xp.matmul(matrix, test))
    for _ in range(iterations):
        basis = orthonormal(xp.matmul(matrix, orthonormal(xp.matmul(across, basis))))
    basis = orthonormal(basis)
    projected = xp.matmul(xp.matrix_transpose(basis), matrix)
    wide = xp.astype(projected, xp.float64)
    vectors = small("principal", xp.matmul(wide, xp.matrix_transpose(wide)))
    turned = xp.astype(vectors[:, :rank], matrix.dtype)
    return xp.matmul(basis, turned), xp.matmul(xp.matrix_transpose(turned), projected)
