"""F26: low-rank residuals against NumPy's full SVD in float64."""

from __future__ import annotations

import numpy as np
import pytest

from hybridcore.correction.compression import CompressedBuckets, compress_buckets, low_rank
from hybridcore.errors import DeltaError
from hybridcore.layout import ParamLayout
from hybridcore.testing.backends import Backend


@pytest.fixture(params=list(Backend), ids=str)
def backend(request):
    pytest.importorskip(request.param.package)
    return request.param


def spectrum(m, n, decay, seed=0):
    """A matrix with singular values ``k ** -decay``, and those values."""
    rng = np.random.default_rng(seed)
    k = min(m, n)
    u, v = (np.linalg.qr(rng.standard_normal((s, k)))[0] for s in (m, n))
    s = np.arange(1.0, k + 1.0) ** -decay
    return (u * s) @ v.T, s


def array(backend, values):
    xp = backend.namespace()
    return backend.protect(xp.asarray(values.astype(np.float32).copy(), dtype=xp.float32))


@pytest.mark.parametrize("rank", [1, 4, 12])
@pytest.mark.parametrize(("m", "n"), [(60, 40), (30, 200)])
def test_f26_error_is_within_a_few_percent_of_the_optimum(backend, m, n, rank):
    xp = backend.namespace()
    matrix, s = spectrum(m, n, 0.5)  # slow decay: the hard case
    found = low_rank(array(backend, matrix), rank, xp, np.random.default_rng(1))
    best = np.sqrt((s[rank:] ** 2).sum())
    true = np.linalg.norm(matrix - backend.to_numpy(found.expand(xp)))
    assert best * (1 - 1e-5) <= true <= 1.03 * best
    assert found.error == pytest.approx(true, rel=1e-4)
    assert found.norm == pytest.approx(np.linalg.norm(matrix), rel=1e-5)
    assert found.nbytes == 4 * rank * (m + n)
    assert found.left.shape == (m, rank) and found.right.shape == (rank, n)


def test_f26_power_iterations_bring_the_error_down():
    from array_api_compat import numpy as xp

    matrix, _ = spectrum(120, 90, 0.3)
    matrix = matrix.astype(np.float32)
    errors = [
        np.mean(
            [low_rank(matrix, 2, xp, np.random.default_rng(s), power_iterations=q).error for s in range(5)]
        )
        for q in (0, 1, 3)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_f26_exact_where_the_rank_suffices(backend):
    xp = backend.namespace()
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((20, 3)) @ rng.standard_normal((3, 50))
    found = low_rank(array(backend, matrix), 3, xp, rng)
    np.testing.assert_allclose(backend.to_numpy(found.expand(xp)), matrix, atol=2e-5)


def test_zero_matrix_and_rank_beyond_the_shape(backend):
    xp = backend.namespace()
    found = low_rank(array(backend, np.zeros((5, 4))), 9, xp, np.random.default_rng(0))
    assert found.error == 0.0 and found.left.shape[1] == 4


LAYOUT = ParamLayout.plan(
    [
        ("conv.weight", (8, 3, 5, 5), "float32", "cpu", None),
        ("conv.bias", (8,), "float32", "cpu", None),
        ("dense.weight", (40, 30), "bfloat16", "cpu", None),
        ("tiny.weight", (2, 2), "bfloat16", "cpu", None),
    ]
)


def test_f26_buckets_report_their_bytes_and_error(backend):
    xp = backend.namespace()
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(n) for n in LAYOUT.bucket_sizes]
    buckets = tuple(array(backend, v) for v in values)
    found = compress_buckets(buckets, LAYOUT, 2, xp, np.random.default_rng(1))
    assert isinstance(found, CompressedBuckets)
    # 8 x 75 and 40 x 30 in rank 2; a bias and a 2 x 2 matrix whole.
    assert found.nbytes == 4 * (2 * 83 + 8 + 2 * 70 + 4) < LAYOUT.nbytes
    expanded = [backend.to_numpy(b) for b in found.expand(xp)]
    off = np.concatenate([a - b for a, b in zip(values, expanded, strict=True)])
    assert found.error == pytest.approx(np.linalg.norm(off), rel=1e-4)
    assert found.norm == pytest.approx(np.linalg.norm(np.concatenate(values)), rel=1e-5)
    named = LAYOUT.unpack(tuple(off_ for off_ in (v - e for v, e in zip(values, expanded, strict=True))), np)
    assert np.abs(named["conv.bias"]).max() < 1e-6 and np.abs(named["tiny.weight"]).max() < 1e-6
    optimum = 0.0
    whole = LAYOUT.unpack(tuple(values), np)
    for name in ("conv.weight", "dense.weight"):
        s = np.linalg.svd(whole[name].reshape(whole[name].shape[0], -1), compute_uv=False)
        optimum += float((s[2:] ** 2).sum())
    assert found.error <= 1.03 * np.sqrt(optimum)
    assert 0.0 < found.relative_error < 1.0


def test_buckets_of_another_layout_are_refused():
    from array_api_compat import numpy as xp

    with pytest.raises(DeltaError):
        compress_buckets((xp.zeros(3),), LAYOUT, 1, xp, np.random.default_rng(0))
