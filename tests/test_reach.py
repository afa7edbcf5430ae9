"""The reach of a path against closed forms and brute force."""

from __future__ import annotations

import json
import math

import array_api_compat.numpy as xp
import numpy as np
import pytest

from hybridcore.config import HistoryConfig
from hybridcore.history import History
from hybridcore.kernels import REFERENCE
from hybridcore.protocols import OptimizerSpec
from hybridcore.reach import Reach
from hybridcore.reference import quadratic


def walk(adapter, steps, reach, jump=None):
    """Real steps with the reach sampled as the engine does it; returns w before, and w after, each step."""
    history = History(adapter.layout, xp, HistoryConfig(), {"last-update", "reach"})
    reach.start(adapter)
    path = []
    for step in range(1, steps + 1):
        before = adapter.params["w"].copy()
        history.before_step(adapter)
        adapter.train_step(None)
        history.after_step(adapter)
        path.append((before, adapter.params["w"].copy()))
        reach.observe(step, history, adapter)
        history.last_update()
        if jump is not None:
            adapter.apply_delta(history.last_update(), jump)
    return path


def brute(path, beta, start):
    """``(1 - beta) max |w - w0| / sqrt(sum |u_t - beta u_{t-1}|^2)`` in float64, term by term."""
    total, farthest, older = 0.0, 0.0, None
    for before, after in path:
        update = after - before
        fresh = update if older is None else update - beta * older
        scale = 1.0 if older is None else 1.0 / (1.0 - beta)
        total += float(fresh @ fresh) * scale**2
        farthest = max(farthest, float(np.linalg.norm(after - start)))
        older = update
    return farthest / math.sqrt(total)


@pytest.mark.parametrize("jump", [None, 2.0])
def test_sgd_equals_distance_over_gradients(jump):
    """Ivgi et al. 2023, eq. (1), over the learning rate: r_t / sqrt(sum |g|^2) / eta."""
    adapter = quadratic(3, optimizer=OptimizerSpec("sgd", 0.01), noise=0.5)
    reach = Reach(xp, sample_share=1e-9)
    start = adapter.params["w"].copy()
    path = walk(adapter, 40, reach, jump)
    assert reach.horizon == pytest.approx(brute(path, 0.0, start), rel=1e-4)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_momentum_is_taken_out_of_the_updates(name):
    adapter = quadratic(4, optimizer=OptimizerSpec(name, 0.003), noise=0.5)
    reach = Reach(xp, sample_share=1e-9)
    start = adapter.params["w"].copy()
    path = walk(adapter, 40, reach)
    assert reach.horizon == pytest.approx(brute(path, 0.9, start), rel=1e-3)


def test_heavy_ball_and_sgd_of_equal_effect_agree():
    """Momentum beta with rate eta moves like SGD with eta / (1 - beta): so much less is left to gain."""
    noise, steps = 0.0, 300
    plain = quadratic(5, optimizer=OptimizerSpec("sgd", 1e-3), noise=noise)
    heavy = quadratic(5, optimizer=OptimizerSpec("momentum", 1e-4, 0.9), noise=noise)
    one, other = Reach(xp), Reach(xp)
    walk(plain, steps, one)
    walk(heavy, steps, other)
    assert other.horizon == pytest.approx(one.horizon, rel=0.1)


def test_a_straight_path_supports_ever_longer_steps():
    """n equal steps of length s: r = n s, the sum is n s^2, so h = sqrt(n)."""
    adapter = quadratic(6, size=4, condition=1.0, optimizer=OptimizerSpec("sgd", 1e-4))
    reach = Reach(xp, sample_share=1e-9)
    walk(adapter, 64, reach)
    assert reach.horizon == pytest.approx(8.0, rel=1e-2)


def test_f86_the_reach_grows_with_the_root_of_the_steps_on_a_straight_path():
    adapter = quadratic(6, size=4, condition=1.0, optimizer=OptimizerSpec("sgd", 1e-4))
    reach = Reach(xp)
    assert math.isnan(reach.growth)
    walk(adapter, 64, reach)
    assert reach.growth == pytest.approx(0.5, abs=0.05)


def test_f86_growth_is_that_of_the_last_steps_and_not_of_the_first():
    """A first update is as long as its path, so that the horizon begins at one, whatever follows."""
    reach = Reach(xp)
    for step in range(1, 41):
        reach.horizon, reach._counted = max(1.0 / step, 0.15 * math.sqrt(step)), step
        reach._note()
    assert reach.horizon < 1.0
    assert reach.growth == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_f86_it_does_not_grow_where_the_path_wanders(seed):
    """At the bottom of a bowl, with noise, steps lead nowhere; no dip of the reach is taken for growth."""
    adapter = quadratic(seed, size=50, optimizer=OptimizerSpec("sgd", 0.3), noise=1.0)
    walk(adapter, 100, Reach(xp))
    reach = Reach(xp)
    walk(adapter, 200, reach)
    assert reach.growth < 0.1


def test_f86_what_growth_needs_stays_small_and_survives_a_round_trip():
    reach, other = Reach(xp), Reach(xp)
    walk(quadratic(7, noise=1.0), 2000, reach)
    assert len(reach.state_dict()["past"]) < 24
    other.load_state_dict(json.loads(json.dumps(reach.state_dict())))
    assert other.growth == reach.growth


def test_sampling_keeps_the_value():
    exact, sampled = Reach(xp, sample_share=1e-9), Reach(xp)
    for reach in (exact, sampled):
        walk(quadratic(7, noise=1.0, size=500), 400, reach)
    assert sampled._samples < 250 < exact._samples == 400
    assert sampled.horizon == pytest.approx(exact.horizon, rel=0.1)


def test_non_finite_updates_leave_it_alone():
    adapter = quadratic(8)
    reach = Reach(xp, sample_share=1e-9)
    walk(adapter, 5, reach)
    before = reach.state_dict()
    history = History(adapter.layout, xp, HistoryConfig(), {"last-update", "reach"})
    history.before_step(adapter)
    adapter.params["w"][0] = np.inf
    history.after_step(adapter)
    reach.observe(6, history, adapter)
    assert reach.state_dict() == before


def test_state_round_trip():
    reach, other = Reach(xp), Reach(xp)
    walk(quadratic(9), 10, reach)
    other.load_state_dict(reach.state_dict())
    assert other.state_dict() == reach.state_dict()


def test_growing_updates_shorten_the_reach_at_once():
    """Nine small steps and then large ones: the sum of the past alone would say sqrt(sum) of small ones."""

    class Path:
        momentum_memory = 1.0

        def __init__(self):
            self.w = np.zeros(4, np.float32)

        def read_params(self, out=None):
            return (self.w.copy(),)

    class Updates:
        kernels = REFERENCE

        def __init__(self, u):
            self.u = u

        def updates(self):
            return (self.u,), None

        def last_update(self):
            return (self.u,)

    def reach(sizes):
        path, found = Path(), Reach(xp)
        found.start(path)
        for step, size in enumerate(sizes, 1):
            u = np.zeros(4, np.float32)
            u[step % 4] = size
            path.w += u
            found.observe(step, Updates(u), path)
        return found.horizon, float(np.linalg.norm(path.w))

    horizon, far = reach([0.01] * 9 + [1.0, 1.0])
    assert horizon == pytest.approx(far / np.sqrt(11 * 0.5 * (0.5 * (0.01**2 + 1.0) + 1.0)), rel=1e-4)
    falling, far = reach([1.0] * 9 + [0.01, 0.01])
    assert falling == pytest.approx(far / np.sqrt(9 * 1.0 + 2 * 0.01**2), rel=1e-4)
