"""F65: randomised compression against the best approximation, by NumPy's singular value decomposition."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest

from hybridcore.kernels import REFERENCE
from hybridcore_cupy.lowrank import factors


@pytest.mark.parametrize("which", ["kernel", "reference"])
@pytest.mark.parametrize("shape", [(120, 40), (30, 90), (5, 3), (1, 7)])
def test_f65_compression_is_near_the_best_of_its_rank(which, shape):
    rng = np.random.default_rng(1)
    m, n = shape
    decay = 0.5 ** np.arange(min(m, n))
    u, _ = np.linalg.qr(rng.standard_normal((m, min(m, n))))
    v, _ = np.linalg.qr(rng.standard_normal((n, min(m, n))))
    matrix = ((u * decay) @ v.T).astype(np.float32)
    rank = 6
    left, right = (
        factors(matrix, rank, 2, np) if which == "kernel" else REFERENCE.compress(matrix, rank, 2, xp)
    )
    assert left.shape == (m, min(rank, m, n)) and right.shape == (min(rank, m, n), n)
    error = np.linalg.norm(left.astype(np.float64) @ right - matrix)
    best = np.sqrt((decay[rank:] ** 2).sum())
    assert error <= 1.05 * best + 1e-6


@pytest.mark.parametrize("which", ["kernel", "reference"])
def test_f65_a_matrix_of_lower_rank_is_kept(which):
    rng = np.random.default_rng(2)
    matrix = (rng.standard_normal((50, 2)) @ rng.standard_normal((2, 60))).astype(np.float32)
    left, right = factors(matrix, 5, 0, np) if which == "kernel" else REFERENCE.compress(matrix, 5, 0, xp)
    assert np.abs(left @ right - matrix).max() < 1e-5 * np.abs(matrix).max()
