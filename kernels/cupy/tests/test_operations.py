"""F70: every kernel against float64, on odd sizes, empty buckets and every alignment (run on the CPU)."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import array_api_compat.torch as xp
import numpy as np
import pytest
import torch

from hybridcore.kernels import REFERENCE
from hybridcore.layout import ParamGroup
from hybridcore_cupy import device, passes
from hybridcore_cupy.arrays import open_arrays
from hybridcore_cupy.scratch import Scratch, scratch

SIZES = ((0,), (1,), (3, 5), (1023,), (4099, 0, 17))
G = ParamGroup


CASES = [(SIZES[0], 0), (SIZES[1], 3), (SIZES[2], 0), (SIZES[3], 1), (SIZES[4], 0), (SIZES[4], 3)]


@pytest.fixture(params=CASES, ids=str)
def draw(request):
    """Function that draws buckets of the sizes; views that begin `offset` numbers after 16-byte alignment."""
    sizes, offset = request.param
    rng = np.random.default_rng(7)

    def make(shift=0):
        def bucket(n):
            whole = torch.as_tensor(rng.standard_normal(n + 8).astype(np.float32))
            return whole[offset + shift : offset + shift + n]

        return tuple(bucket(n) for n in sizes)

    return make


def wide(buckets):
    return np.concatenate([np.asarray(b, dtype=np.float64) for b in buckets])


def close(got, expected, scale, tolerance=1e-6):
    assert np.abs(np.asarray(got, dtype=np.float64) - expected).max(initial=0.0) <= tolerance * max(
        scale, 1e-30
    )


def same_buckets(got, expected):
    close(wide(got), expected, np.abs(expected).max(initial=0.0))


@pytest.mark.parametrize("shift", [0, 2])
def test_f70_products_and_distance(emulated, draw, shift):
    a, b = draw(), draw(shift)
    x, y = wide(a), wide(b)
    scale = max(x @ x, y @ y)
    close(emulated.products(a, b, xp), [x @ x, y @ y, x @ y], scale)
    close(emulated.distance(a, b, xp), np.linalg.norm(x - y), np.linalg.norm(x - y))


@pytest.mark.parametrize("k", [1, 3, 8, 10])
def test_f70_gram_and_combination(emulated, draw, k):
    vectors = [draw() for _ in range(k)]
    matrix = np.stack([wide(v) for v in vectors])
    expected = matrix @ matrix.T
    gram = emulated.gram(vectors, xp)
    close(gram, expected, np.abs(expected).max())
    assert np.array_equal(gram, gram.T)
    weights = np.random.default_rng(k).standard_normal(k)
    mixed = emulated.combine(vectors, list(weights), xp)
    close(wide(mixed), weights @ matrix, np.abs(matrix).max(initial=0.0) * np.abs(weights).sum())


def test_f70_window_mean_and_displacement(emulated, draw):
    total, previous = draw(), draw()
    mean, nothing = emulated.window_mean(total, 10, None, xp)
    assert nothing is None
    same_buckets(mean, wide(total) / 10)
    mean, step = emulated.window_mean(total, 10, previous, xp)
    same_buckets(mean, wide(total) / 10)
    same_buckets(step, wide(total) / 10 - wide(previous))


def test_f70_displacement_and_turn(emulated, draw):
    newer, older, last = draw(), draw(), draw()
    d, v = wide(newer) - wide(older), wide(last)
    step, nothing = emulated.displace(newer, older, None, xp)
    assert nothing is None
    same_buckets(step, d)
    step, products = emulated.displace(newer, older, last, xp)
    same_buckets(step, d)
    close(products, [d @ d, v @ v, d @ v], max(d @ d, v @ v))


def runs_of(buckets):
    """Three groups per bucket, cut at odd places; one run is empty where the bucket is small."""
    runs = []
    for index, bucket in enumerate(buckets):
        n = bucket.shape[0]
        cuts = (0, n // 3, n - n // 5, n)
        for group, start, stop in zip((G.MATRIX, G.NORM, G.BIAS), cuts[:-1], cuts[1:], strict=True):
            runs.append((group, index, slice(start, stop)))
    return runs


@pytest.mark.parametrize("count", [1, 2, 5])
def test_f70_run_norms(emulated, draw, count):
    sets = [draw(shift % 3) for shift in range(count)]
    runs = runs_of(sets[0])
    found = emulated.run_norms(sets, runs, xp)
    assert len(found) == count
    for buckets, norms in zip(sets, found, strict=True):
        expected = [np.linalg.norm(np.asarray(buckets[b][s], dtype=np.float64)) for _, b, s in runs]
        close(norms, expected, max(expected))


def test_f70_norms_of_weights_and_change_take_one_launch_and_one_wait(emulated, monkeypatch):
    launched, read = [], []
    launch, numbers = passes.launch, Scratch.numbers
    monkeypatch.setattr(passes, "launch", lambda *a: launched.append(a[1]) or launch(*a))
    monkeypatch.setattr(Scratch, "numbers", lambda *a: read.append(a[2]) or numbers(*a))
    weights, deltas = (torch.ones(4000),), (torch.full((4000,), 2.0),)
    runs = [(G.MATRIX, 0, slice(0, 3900)), (G.NORM, 0, slice(3900, 3900)), (G.BIAS, 0, slice(3900, 4000))]
    found = emulated.run_norms([weights, deltas], runs, xp)
    expected = [math.sqrt(3900), 0.0, 10.0]
    assert found == [pytest.approx(expected), pytest.approx([2 * e for e in expected])]
    assert len(launched) == 1 and read == [launched[0][0]]
    most = device.blocks_for(8000, 8, 0, 1)
    assert launched[0][0] <= max(most, 4)  # six stretches, two of them empty


def test_f65_codes_equal_the_reference_bit_for_bit(emulated, draw):
    buckets = draw()
    for dtype in ("bfloat16", "int8"):
        mine, right = emulated.encode(buckets, dtype, 11, xp), REFERENCE.encode(buckets, dtype, 11, xp)
        for x, y in zip((*mine.codes, *mine.scales), (*right.codes, *right.scales), strict=True):
            assert x.dtype == y.dtype and torch.equal(x, y)
        for x, y in zip(emulated.decode(mine, xp), REFERENCE.decode(right, xp), strict=True):
            assert torch.equal(x, y)


def test_f65_special_numbers_survive_bfloat16(emulated):
    special = (torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 3.4e38]),)
    mine = emulated.decode(emulated.encode(special, "bfloat16", 0, xp), xp)[0]
    right = special[0].to(torch.bfloat16).float()
    assert torch.equal(torch.nan_to_num(mine, 7.0), torch.nan_to_num(right, 7.0)) and torch.isnan(mine[0])


def test_f70_strided_buckets(emulated):
    a = (torch.arange(40.0)[::3],)
    b = (torch.arange(14.0),)
    x, y = wide(a), wide(b)
    assert emulated.products(a, b, xp) == pytest.approx((x @ x, y @ y, x @ y), rel=1e-6)


def test_f70_more_runs_than_an_argument_block_holds(emulated):
    bucket = (torch.arange(40.0),)
    runs = [(G.MATRIX, 0, slice(i, i + 2)) for i in range(0, 40, 2)]
    expected = [math.hypot(i, i + 1) for i in range(0, 40, 2)]
    assert emulated.run_norms([bucket], runs, xp) == [pytest.approx(expected)]


def test_f72_sums_repeat_bit_for_bit_and_blocks_are_bounded(emulated):
    a = (torch.as_tensor(np.random.default_rng(0).standard_normal(20_001).astype(np.float32)),)
    assert device.blocks_for(20_001, 4, 0) > device.blocks_for(20_001, 4, 0, 3) == 2
    first = emulated.gram([a, a, a], xp)
    assert np.array_equal(first, emulated.gram([a, a, a], xp))
    assert first[0, 0] == pytest.approx(float((a[0].double() ** 2).sum()), rel=1e-6)


def test_the_first_launch_of_a_thread_goes_through_cupy_and_later_ones_to_the_driver(emulated, monkeypatch):
    cuda, through = device.load_cupy().cuda, []
    launch = cuda.driver.launchKernel
    monkeypatch.setattr(cuda.driver, "launchKernel", lambda *a: through.append(a[0]) or launch(*a))
    a = (torch.arange(1000.0),)
    expected = float(np.arange(1000.0) @ np.arange(1000.0))
    results = [emulated.products(a, a, xp) for _ in range(3)]
    assert results == [(expected,) * 3] * 3 and len(through) == 2
    monkeypatch.setattr(cuda.runtime, "getDevice", lambda: 1)  # another device is current
    assert emulated.products(a, a, xp) == results[0] and len(through) == 2
    monkeypatch.setattr(cuda.runtime, "getDevice", lambda: 0)
    monkeypatch.delattr(cuda.driver, "launchKernel")
    device._handle.cache_clear()
    assert emulated.products(a, a, xp) == results[0]


def test_sums_of_two_threads_do_not_mix(emulated):
    """Each thread has room of its own, even on one stream."""
    arrays = open_arrays(torch.zeros(3), xp)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(scratch, arrays).result()
    assert scratch(arrays) is scratch(arrays) is not other
    assert other.room(arrays, 3) != scratch(arrays).room(arrays, 3)
