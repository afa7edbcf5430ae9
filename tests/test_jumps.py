from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from engine_lab import bowl

from hybridcore.config import GroupsConfig
from hybridcore.errors import DeltaError, PredictionError
from hybridcore.jumps import JumpLimiter
from hybridcore.layout import ParamGroup
from hybridcore.protocols import OptimizerSpec, Prediction
from hybridcore.reference import ReferenceAdapter

GROUPS = {"weight": "matrix", "bias": "bias", "scale": "norm", "embed": "embedding"}


class Model:
    """Never trained here."""

    def losses(self, params, batch):
        raise NotImplementedError

    def gradient(self, params, batch):
        raise NotImplementedError


@pytest.fixture
def adapter():
    rng = np.random.default_rng(0)
    params = {
        "weight": rng.standard_normal((4, 3)),
        "bias": 0.5 * rng.standard_normal(4),
        "scale": 1.0 + 0.1 * rng.standard_normal(4),
        "embed": rng.standard_normal((6, 2)),
    }
    adapter = ReferenceAdapter(Model(), params, OptimizerSpec())
    rows = [(n, v.shape, "float64", "cpu", ParamGroup(GROUPS[n])) for n, v in params.items()]
    adapter.layout = type(adapter.layout).plan(rows)
    return adapter


def change(adapter, sizes, seed=1):
    """Named deltas of given norms."""
    rng = np.random.default_rng(seed)
    named = {}
    for name, value in adapter.params.items():
        d = rng.standard_normal(value.shape)
        named[name] = (d * sizes[name] / np.linalg.norm(d)).astype(np.float32)
    return named


def propose(adapter, named, *, scale=1.0, horizon=8.0, confidence=0.5, **config):
    limiter = JumpLimiter(adapter.layout, xp, GroupsConfig(**config))
    prediction = Prediction(adapter.layout.pack(named, xp), horizon, confidence, scale)
    return limiter.limit(prediction, adapter)


def norms(named):
    return {n: float(np.linalg.norm(v)) for n, v in named.items()}


SMALL = dict.fromkeys(GROUPS, 0.01)


def applied(adapter, jump, share=1.0):
    before = {n: v.copy() for n, v in adapter.params.items()}
    jump.apply(adapter, share)
    return {n: v - before[n] for n, v in adapter.params.items()}


def test_a_small_change_is_applied_as_it_is(adapter):
    named = change(adapter, SMALL)
    jump = propose(adapter, named)
    assert jump.capped == () and jump.horizon == 8.0 and jump.confidence == 0.5
    whole = np.sqrt(sum((v**2).sum() for v in adapter.params.values()))
    assert jump.relative == pytest.approx(np.sqrt(4 * 0.01**2) / whole, rel=1e-6)
    for name, moved in applied(adapter, jump).items():
        np.testing.assert_allclose(moved, named[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("cap", [0.05, 0.5])
@pytest.mark.parametrize("scale", [1.0, -4.0])
def test_f86_each_group_is_capped_at_its_own_weights(adapter, name, cap, scale):
    size = norms(adapter.params)
    sizes = {**SMALL, name: 3.0 * size[name]}
    named = change(adapter, sizes)
    jump = propose(adapter, named, scale=scale, max_relative_jump=cap)
    assert [g.value for g in jump.capped] == [GROUPS[name]]
    limit = cap * size[name]
    moved = {n: limit if n == name else abs(scale) * 0.01 for n in GROUPS}
    wanted = {n: abs(scale) * s for n, s in sizes.items()}
    root = lambda d: np.sqrt(sum(v * v for v in d.values()))  # noqa: E731
    assert jump.horizon == pytest.approx(8.0 * root(moved) / root(wanted), rel=1e-5)
    for other, got in applied(adapter, jump).items():
        assert np.linalg.norm(got) == pytest.approx(moved[other], rel=1e-5)
        cosine = (got * named[other]).sum() / np.linalg.norm(got) / np.linalg.norm(named[other])
        assert cosine == pytest.approx(np.sign(scale), abs=1e-6)


@pytest.mark.parametrize("name", GROUPS)
def test_f86_scale_zero_leaves_a_group_out_bit_for_bit(adapter, name):
    before = adapter.params[name].copy()
    jump = propose(adapter, change(adapter, SMALL), **{f"{GROUPS[name]}_scale": 0.0})
    moved = applied(adapter, jump)
    np.testing.assert_array_equal(adapter.params[name], before)
    assert all(np.any(d) for n, d in moved.items() if n != name)
    assert jump.horizon == 8.0


@pytest.mark.parametrize("name", GROUPS)
def test_f86_scales_multiply_before_the_cap(adapter, name):
    jump = propose(adapter, change(adapter, SMALL), **{f"{GROUPS[name]}_scale": 2.0})
    got = norms(applied(adapter, jump))
    for other in GROUPS:
        assert got[other] == pytest.approx(0.02 if other == name else 0.01, rel=1e-5)
    limit = 0.5 * norms(adapter.params)[name]
    jump = propose(adapter, change(adapter, {**SMALL, name: 10.0}), **{f"{GROUPS[name]}_scale": 2.0})
    assert np.linalg.norm(applied(adapter, jump)[name]) == pytest.approx(limit, rel=0.02)


def test_f86_weights_of_size_zero_are_capped_by_a_hundredth_of_the_whole_model(adapter):
    adapter.params["bias"][...] = 0.0
    whole = np.sqrt(sum((v**2).sum() for v in adapter.params.values()))
    jump = propose(adapter, change(adapter, {**SMALL, "bias": 5.0}), max_relative_jump=0.4)
    got = np.linalg.norm(applied(adapter, jump)["bias"])
    assert got == pytest.approx(0.4 * 0.01 * whole, rel=1e-5)


def test_f86_a_repetition_has_a_cap_of_its_own_and_keeps_its_direction(adapter):
    named = change(adapter, dict.fromkeys(GROUPS, 0.4))
    config = GroupsConfig(max_relative_repeat=0.02)
    limiter = JumpLimiter(adapter.layout, xp, config)
    deltas = adapter.layout.pack(named, xp)
    whole = np.sqrt(sum((v**2).sum() for v in adapter.params.values()))
    single = limiter.limit(Prediction(deltas, 8.0, 0.5, 1.0), adapter)
    first = limiter.limit(Prediction(deltas, 8.0, 0.5, 1.0), adapter, repetition=True)
    assert single.relative > 0.02 and single.horizon == 8.0
    assert first.relative == pytest.approx(0.02)
    assert first.horizon == pytest.approx(8.0 * 0.02 / single.relative)
    for name, moved in applied(adapter, first).items():
        np.testing.assert_allclose(moved, named[name] * first.horizon / 8.0, rtol=1e-4, atol=1e-9)
    norm = np.sqrt(sum((d**2).sum() for d in deltas))
    for asked in (2.0, 16.0, 0.1):  # later ones of the trial, longer and shorter, from updates that
        for grown in (1.0, 4.0, 0.25):  # have grown or shrunk: the cap holds, a short one gets no more of it
            now = tuple(grown * d for d in deltas)
            later = limiter.repeat(Prediction(now, asked, 0.5, asked / 8.0), first, grown * norm)
            free = single.relative * asked / 8.0 * max(grown, 1.0)
            assert later.relative == pytest.approx(min(0.02, free))
            got = np.sqrt(sum((v**2).sum() for v in applied(adapter, later).values()))
            assert got == pytest.approx(later.relative * min(grown, 1.0) * whole, rel=1e-4)
            assert later.horizon == pytest.approx(later.relative / free * asked)


def test_f22_a_repetition_that_is_not_finite_raises(adapter):
    deltas = adapter.layout.pack(change(adapter, SMALL), xp)
    limiter = JumpLimiter(adapter.layout, xp, GroupsConfig())
    first = limiter.limit(Prediction(deltas, 8.0, 0.5, 1.0), adapter, repetition=True)
    with pytest.raises(DeltaError, match="not finite"):
        limiter.repeat(Prediction(deltas, 8.0, 0.5, 1.0), first, np.inf)


def test_f21_shares_sum_to_the_whole(adapter):
    named = change(adapter, SMALL)
    jump = propose(adapter, named, scale=3.0)
    before = {n: v.copy() for n, v in adapter.params.items()}
    for _ in range(7):
        jump.apply(adapter, 1.0 / 7)
    for name, value in adapter.params.items():
        np.testing.assert_allclose(value - before[name], 3.0 * named[name], atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_f22_a_change_that_is_not_finite_raises_and_moves_nothing(adapter, bad):
    named = change(adapter, SMALL)
    named["bias"][2] = bad
    before = adapter.read_params()
    with pytest.raises(DeltaError, match="not finite"):
        propose(adapter, named)
    with pytest.raises(DeltaError, match="not finite"):
        propose(adapter, change(adapter, SMALL), scale=bad)
    np.testing.assert_array_equal(adapter.read_params()[0], before[0])


def test_f22_buckets_that_do_not_fit_raise(adapter):
    limiter = JumpLimiter(adapter.layout, xp, GroupsConfig())
    with pytest.raises(DeltaError, match="do not fit") as caught:
        limiter.limit(Prediction((np.zeros(3, np.float32),), 1.0, 1.0), adapter)
    assert caught.value.where == "prediction.deltas"


@pytest.mark.parametrize(
    "wrong", [{"confidence": 1.1}, {"confidence": -0.1}, {"confidence": np.nan}, {"horizon": np.inf}]
)
def test_an_impossible_confidence_or_horizon_raises(adapter, wrong):
    with pytest.raises(PredictionError, match="impossible"):
        propose(adapter, change(adapter, SMALL), **wrong)


def test_caps_follow_the_weights_when_measured_anew(adapter):
    limiter = JumpLimiter(adapter.layout, xp, GroupsConfig(max_relative_jump=0.1))
    named = change(adapter, {**SMALL, "embed": 50.0})
    for factor in (1.0, 3.0):
        adapter.params["embed"] *= factor
        limiter.forget_weights()
        jump = limiter.limit(Prediction(adapter.layout.pack(named, xp), 1.0, 1.0), adapter)
        size = np.linalg.norm(adapter.params["embed"])
        adapter.params["embed"] *= 2.0  # within a trial its first norms hold
        again = limiter.limit(Prediction(adapter.layout.pack(named, xp), 1.0, 1.0), adapter)
        adapter.params["embed"] /= 2.0
        assert again.groups == jump.groups
        assert jump.groups[ParamGroup.EMBEDDING] * 50.0 == pytest.approx(0.1 * size, rel=1e-5)


@pytest.mark.parametrize("k", [2, 5])
def test_f68_changes_added_up_and_applied_once_equal_changes_applied_one_by_one(k):
    rng = np.random.default_rng(k)
    one, two = bowl(seed=3), bowl(seed=3)
    deltas = [
        tuple(rng.standard_normal(b.shape).astype(np.float32) for b in one.read_params()) for _ in range(k)
    ]
    for delta in deltas:
        one.apply_delta(delta, 0.5)
    two.apply_delta(tuple(np.sum(parts, axis=0) for parts in zip(*deltas, strict=True)), 0.5)
    for a, b in zip(one.read_params(), two.read_params(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
