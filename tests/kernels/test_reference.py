"""F65, F70: the reference operations against float64, on every array namespace that is installed."""

from __future__ import annotations

import math

import array_api_compat.numpy
import array_api_strict
import numpy as np
import pytest

from hybridcore.errors import PredictionError
from hybridcore.kernels import REFERENCE, host
from hybridcore.kernels.encoding import BLOCK, encoded_bytes
from hybridcore.layout import ParamGroup

G = ParamGroup


@pytest.fixture(params=[array_api_compat.numpy, array_api_strict], ids=["numpy", "strict"])
def xp(request):
    return request.param


def draw(xp, sizes=(5, 301), seed=0):
    rng = np.random.default_rng(seed)
    return tuple(xp.asarray(rng.standard_normal(n), dtype=xp.float32) for n in sizes)


def wide(buckets):
    return np.concatenate([np.asarray(b).astype(np.float64) for b in buckets])


def test_f70_sums_equal_float64(xp):
    a, b, c = (draw(xp, seed=s) for s in range(3))
    x, y, z = wide(a), wide(b), wide(c)
    assert REFERENCE.products(a, b, xp) == pytest.approx((x @ x, y @ y, x @ y), rel=1e-5)
    assert REFERENCE.distance(a, b, xp) == pytest.approx(np.linalg.norm(x - y), rel=1e-6)
    matrix = np.stack([x, y, z])
    np.testing.assert_allclose(REFERENCE.gram([a, b, c], xp), matrix @ matrix.T, atol=1e-4)
    mixed = REFERENCE.combine([a, b, c], [1.0, -0.5, 3.0], xp)
    np.testing.assert_allclose(wide(mixed), x - 0.5 * y + 3.0 * z, atol=1e-5)


def test_numbers_of_a_device_are_fetched_at_once_and_are_the_same(monkeypatch):
    """A device that only calls itself one: all inner products of a Gram matrix, one transfer."""
    xp, fetched = array_api_compat.numpy, []
    vectors = [draw(xp, seed=s) for s in range(4)]
    runs = [(G.MATRIX, 0, slice(0, 5)), (G.BIAS, 1, slice(0, 7)), (G.BIAS, 1, slice(7, 301))]
    expected = REFERENCE.gram(vectors, xp), REFERENCE.run_norms(vectors[:2], runs, xp)
    fetch = host.to_host
    monkeypatch.setattr(host, "to_host", lambda array, xp: fetched.append(array.shape) or fetch(array, xp))
    monkeypatch.setattr(host.array_api_compat, "device", lambda array: "fake:0")
    np.testing.assert_array_equal(REFERENCE.gram(vectors, xp), expected[0])
    assert REFERENCE.run_norms(vectors[:2], runs, xp) == expected[1]
    assert fetched == [(20,), (6,)]


def test_f70_means_and_displacements_equal_float64(xp):
    a, b, c = (draw(xp, seed=s) for s in range(3))
    mean, step = REFERENCE.window_mean(a, 4, b, xp)
    np.testing.assert_allclose(wide(mean), wide(a) / 4, rtol=1e-6)
    np.testing.assert_allclose(wide(step), wide(a) / 4 - wide(b), atol=1e-6)
    d, v = wide(a) - wide(b), wide(c)
    step, products = REFERENCE.displace(a, b, c, xp)
    np.testing.assert_allclose(wide(step), d, atol=1e-6)
    assert products == pytest.approx((d @ d, v @ v, d @ v), rel=1e-5)


def test_f70_norms_of_runs_equal_float64(xp):
    sets = [draw(xp, seed=s) for s in range(2)]
    runs = [(G.MATRIX, 0, slice(0, 5)), (G.BIAS, 1, slice(0, 7)), (G.BIAS, 1, slice(7, 301))]
    for buckets, norms in zip(sets, REFERENCE.run_norms(sets, runs, xp), strict=True):
        wide_ = [np.asarray(b).astype(np.float64) for b in buckets]
        assert norms == pytest.approx([np.linalg.norm(wide_[b][s]) for _, b, s in runs], rel=1e-6)


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * BLOCK + 7])
def test_f65_bfloat16_keeps_its_bound_and_rounds_to_nearest(xp, size):
    bucket = draw(xp, (size,), seed=size)
    back = REFERENCE.decode(REFERENCE.encode(bucket, "bfloat16", 0, xp), xp)
    x, y = wide(bucket), wide(back)
    assert (np.abs(y - x) <= 2.0**-8 * np.abs(x)).all()
    # Independent truth: the two neighbours with 8 significant bits, by frexp.
    fraction, exponent = np.frexp(x)
    nearest = np.ldexp(np.rint(fraction * 256) / 256, exponent)
    np.testing.assert_array_equal(y, nearest)


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * BLOCK + 7])
def test_f65_int8_keeps_its_bound(xp, size):
    bucket = draw(xp, (size,), seed=size)
    coded = REFERENCE.encode(bucket, "int8", 3, xp)
    x, y = wide(bucket), wide(REFERENCE.decode(coded, xp))
    for start in range(0, size, BLOCK):
        block = slice(start, start + BLOCK)
        assert np.abs(y[block] - x[block]).max() <= np.abs(x[block]).max() / 127 * (1 + 1e-5)
    held = sum(np.asarray(a).nbytes for a in (*coded.codes, *coded.scales))
    assert held == encoded_bytes(size, "int8")


def test_f65_int8_is_right_on_average_and_repeats_with_its_seed():
    xp = array_api_compat.numpy
    bucket = draw(xp, (BLOCK,))
    seeds = range(400)
    all_ = np.stack([wide(REFERENCE.decode(REFERENCE.encode(bucket, "int8", s, xp), xp)) for s in seeds])
    level = np.abs(wide(bucket)).max() / 127
    # A mean of 400 draws that each miss by at most one level: deviation at most level / 2 / sqrt(400).
    assert np.abs(all_.mean(axis=0) - wide(bucket)).max() < 5 * level / 2 / 20
    again = wide(REFERENCE.decode(REFERENCE.encode(bucket, "int8", 7, xp), xp))
    assert np.array_equal(again, all_[7]) and not np.array_equal(all_[7], all_[8])


def test_f65_zeros_and_what_is_not_finite(xp):
    zeros = (xp.zeros((300,), dtype=xp.float32),)
    assert not wide(REFERENCE.decode(REFERENCE.encode(zeros, "int8", 0, xp), xp)).any()
    special = (xp.asarray([math.nan, math.inf, -math.inf, 3.4e38], dtype=xp.float32),)
    back = wide(REFERENCE.decode(REFERENCE.encode(special, "bfloat16", 0, xp), xp))
    assert math.isnan(back[0]) and back[1] == math.inf and back[2] == -math.inf and back[3] == math.inf


def test_f65_an_unknown_encoding_is_refused(xp):
    with pytest.raises(PredictionError, match=r"history\.dtype"):
        REFERENCE.encode(draw(xp), "float8", 0, xp)
