"""F26, F65: randomised compression against NumPy's singular value decomposition (CUDA code on the CPU)."""

from __future__ import annotations

import array_api_compat.torch as xp
import numpy as np
import pytest
import torch

from hybridcore.correction.compression import low_rank
from hybridcore.kernels import REFERENCE
from hybridcore_cupy import CupyKernels, lowrank
from hybridcore_cupy.arrays import open_arrays
from hybridcore_cupy.device import kernel, launch
from hybridcore_cupy.structs import Args


def compressed(kernels, matrix, rank, seed=1):
    m, n = matrix.shape
    test = np.random.default_rng(seed).standard_normal((n, min(rank + 8, m, n))).astype(np.float32)
    left, right = kernels.compress(torch.as_tensor(matrix), rank, torch.as_tensor(test), 2, xp)
    return left.double().numpy(), right.double().numpy()


@pytest.mark.parametrize("which", ["kernel", "reference"])
@pytest.mark.parametrize("shape", [(120, 40), (30, 90), (5, 3), (1, 7)])
def test_f65_compression_is_near_the_best_of_its_rank(emulated, which, shape):
    rng = np.random.default_rng(1)
    m, n = shape
    decay = 0.5 ** np.arange(min(m, n))
    u, _ = np.linalg.qr(rng.standard_normal((m, min(m, n))))
    v, _ = np.linalg.qr(rng.standard_normal((n, min(m, n))))
    matrix = ((u * decay) @ v.T).astype(np.float32)
    rank = 6
    left, right = compressed(emulated if which == "kernel" else REFERENCE, matrix, rank)
    assert left.shape == (m, min(rank, m, n)) and right.shape == (min(rank, m, n), n)
    error = np.linalg.norm(left @ right - matrix)
    best = np.sqrt((decay[rank:] ** 2).sum())
    assert error <= 1.05 * best + 1e-6


@pytest.mark.parametrize("rank", [0, 2])
def test_f65_a_matrix_of_lower_rank_is_kept(emulated, rank):
    rng = np.random.default_rng(2)
    matrix = (rng.standard_normal((50, rank)) @ rng.standard_normal((rank, 60))).astype(np.float32)
    left, right = compressed(emulated, matrix, 5)
    assert np.abs(left @ right - matrix).max() <= 1e-5 * np.abs(matrix).max()


def test_f26_the_core_gets_the_same_residual_from_either(emulated):
    matrix = torch.as_tensor(np.random.default_rng(3).standard_normal((60, 45)).astype(np.float32))
    mine, right = (
        low_rank(matrix, 4, xp, np.random.default_rng(5), kernels=kernels)
        for kernels in (emulated, REFERENCE)
    )
    assert mine.error == pytest.approx(right.error, rel=1e-6) and mine.norm == right.norm
    assert (mine.expand(xp) - right.expand(xp)).abs().max() < 1e-4


def test_f26_what_the_small_kernels_do_not_take_goes_to_the_reference(emulated, monkeypatch):
    monkeypatch.setattr(lowrank, "factors", None)
    wide = np.random.default_rng(0).standard_normal((90, 80))
    for matrix, rank in ((wide.astype(np.float32), lowrank.MOST_SIDE), (wide, 3)):
        given = torch.as_tensor(matrix)
        test = torch.randn(80, rank + 8, dtype=given.dtype, generator=torch.Generator().manual_seed(0))
        mine = CupyKernels().compress(given, rank, test, 1, xp)
        for a, b in zip(mine, REFERENCE.compress(given, rank, test, 1, xp), strict=True):
            assert torch.equal(a, b)


def run_small(name, gram):
    given = torch.as_tensor(gram)
    arrays, block = open_arrays(given, xp), Args()
    out = arrays.empty(given.shape, "float64")
    block.inputs[0], block.outputs[0], block.count = arrays.pointer(given), arrays.pointer(out), len(gram)
    launch(kernel("small", name), (1, 1), block, arrays.stream, arrays.device)
    return out.numpy()


@pytest.mark.parametrize("side", [1, 2, 7, 12, lowrank.MOST_SIDE])
def test_f65_eigenvectors_and_whitening_equal_numpys(emulated, side):
    rng = np.random.default_rng(side)
    tall = rng.standard_normal((side + 5, side)) * 10.0 ** -rng.uniform(0, 3, side)
    gram = tall.T @ tall
    values, vectors = np.linalg.eigh(gram)
    found = run_small("principal", gram)
    assert np.abs(found.T @ found - np.eye(side)).max() < 1e-12
    np.testing.assert_allclose(
        np.diag(found.T @ gram @ found), values[::-1], rtol=1e-9, atol=1e-14 * values[-1]
    )
    assert np.abs(np.abs(found[:, 0] @ vectors[:, -1]) - 1.0) < 1e-9
    turn = run_small("whiten", gram)
    assert np.array_equal(turn, np.triu(turn))
    np.testing.assert_allclose(turn, np.linalg.inv(np.linalg.cholesky(gram)).T, rtol=1e-6, atol=1e-6)


def test_f65_whitening_leaves_dependent_columns_out(emulated):
    tall = np.random.default_rng(0).standard_normal((20, 3))
    tall = np.column_stack([tall[:, 0], 2.0 * tall[:, 0], tall[:, 1], np.zeros(20), tall @ [1.0, 1.0, 1.0]])
    turn = run_small("whiten", tall.T @ tall)
    basis = tall @ turn
    np.testing.assert_allclose(basis.T @ basis, np.diag([1.0, 0.0, 1.0, 0.0, 1.0]), atol=1e-10)
