from __future__ import annotations

import gc
import importlib
import tracemalloc

import array_api_compat.numpy
import array_api_strict
import numpy as np
import pytest
from engine_lab import bowl, build, clouds, configure, drive

from hybridcore.config import HistoryConfig
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.errors import MemoryBudgetError, PredictionError
from hybridcore.history import NEEDS, History, dot, norm
from hybridcore.layout import ParamLayout
from hybridcore.predictors.drift import Drift
from hybridcore.protocols import OptimizerSpec

NUMPY = array_api_compat.numpy


class Walk:
    """Adapter that yields a given trajectory, shape (steps + 1, 8), in two buckets."""

    def __init__(self, xp, path):
        self.xp, self.path, self.at = xp, np.asarray(path, np.float32), 0
        rows = [("a", (5,), "bfloat16", "cpu", None), ("b", (3,), "float32", "cpu", None)]
        self.layout = ParamLayout.plan(rows)

    def read_params(self, out=None):
        row = self.path[self.at]
        parts = (self.xp.asarray(row[:5].copy()), self.xp.asarray(row[5:].copy()))
        if out is None:
            return parts
        for old, new in zip(out, parts, strict=True):
            old[...] = new
        return out

    def add_params(self, into, weight=1.0, decay=1.0):
        for old, new in zip(into, self.read_params(), strict=True):
            old[...] = decay * old + weight * new
        return into


@pytest.fixture(params=["numpy", "strict", "torch"])
def xp(request):
    if request.param == "torch":
        pytest.importorskip("torch", reason="the core is tested without a framework too")
        return importlib.import_module("array_api_compat.torch")
    return {"numpy": array_api_compat.numpy, "strict": array_api_strict}[request.param]


def flat(buckets):
    return np.concatenate([np.asarray(b) for b in buckets]).astype(np.float64)


def follow(xp, path, steps=None, *, window=4, windows=3, needs=NEEDS):
    walk = Walk(xp, path)
    history = History(walk.layout, xp, HistoryConfig(window=window, windows=windows), needs)
    for _ in range(len(path) - 1 if steps is None else steps):
        step(history, walk)
    return history, walk


def step(history, walk):
    history.before_step(walk)
    walk.at += 1
    history.after_step(walk)


@pytest.fixture
def path():
    return np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)


@pytest.mark.parametrize("window", [1, 3, 4])
@pytest.mark.parametrize("steps", [2, 11, 12, 13, 39])
def test_window_means_against_numpy(xp, path, window, steps):
    history, _ = follow(xp, path, steps, window=window)
    after = path[1 : steps + 1].astype(np.float64)
    whole = steps // window
    truth = after[: whole * window].reshape(whole, window, 8).mean(axis=1)[-3:]
    means = history.window_means
    assert len(means) == len(truth)
    for mean, expected in zip(means, truth, strict=True):
        np.testing.assert_allclose(flat(mean), expected, atol=2e-6)
    if len(truth) >= 2:
        np.testing.assert_allclose(flat(history.displacement()), truth[-1] - truth[-2], atol=4e-6)


@pytest.mark.parametrize("steps", range(1, 13))
def test_latest_mean_and_its_age_against_numpy(xp, path, steps):
    window = 4
    history, _ = follow(xp, path, steps, window=window)
    still_open = steps % window
    if 2 * still_open >= window:
        rows = np.arange(steps - still_open + 1, steps + 1)
    elif steps >= window:
        end = steps - still_open
        rows = np.arange(end - window + 1, end + 1)
    else:
        assert history.latest_mean() is None
        return
    mean, age = history.latest_mean()
    np.testing.assert_allclose(flat(mean), path[rows].astype(np.float64).mean(axis=0), atol=2e-6)
    assert age == steps - rows.mean()


@pytest.mark.parametrize("steps", [3, 4, 5, 6, 7, 8, 9, 10, 15])
def test_earlier_mean_is_the_one_before_the_latest(xp, path, steps):
    window = 4
    history, _ = follow(xp, path, steps, window=window)
    still_open = steps % window
    end = steps - still_open - (0 if 2 * still_open >= window else window)
    if end < window:
        assert history.earlier_mean() is None
        return
    rows = np.arange(end - window + 1, end + 1)
    mean, between = history.earlier_mean()
    np.testing.assert_allclose(flat(mean), path[rows].astype(np.float64).mean(axis=0), atol=2e-6)
    assert between == steps - rows.mean() - history.latest_mean()[1]


def test_last_update_is_the_difference_of_the_weights_around_the_last_step(xp, path):
    history, walk = follow(xp, path, 7)
    np.testing.assert_allclose(flat(history.last_update()), path[7] - path[6], atol=1e-6)
    np.testing.assert_allclose(flat(history.last_update()), path[7] - path[6], atol=1e-6)
    step(history, walk)
    np.testing.assert_allclose(flat(history.last_update()), path[8] - path[7], atol=1e-6)
    np.testing.assert_array_equal(flat(history.current()), path[8])


def test_nothing_handed_out_changes_later(xp, path):
    history, walk = follow(xp, path, 14)
    # The last update alone is valid only until the next real step.
    handed = [*history.window_means, history.displacement(), history.current()]
    handed.append(history.latest_mean()[0])
    before = [flat(h).copy() for h in handed]
    for _ in range(20):
        step(history, walk)
    history.restart()
    step(history, walk)
    for kept, then in zip(handed, before, strict=True):
        np.testing.assert_array_equal(flat(kept), then)


def test_straightness_of_a_straight_line_is_one(xp):
    direction = np.arange(1.0, 9.0)
    history, _ = follow(xp, np.arange(13)[:, None] * direction)
    assert history.straightness() == pytest.approx(1.0, abs=1e-6)


def test_straightness_of_an_alternating_path_is_minus_one(xp):
    direction = np.arange(1.0, 9.0)
    ends = np.array([0.0, 1.0, -1.0, 1.0])
    position = np.interp(np.arange(13), np.arange(4) * 4, ends)
    history, _ = follow(xp, position[:, None] * direction)
    assert history.straightness() == pytest.approx(-1.0, abs=1e-6)


def test_straightness_against_numpy_and_unknown_before_three_ends(xp, path):
    history, walk = follow(xp, path, 11)
    assert np.isnan(history.straightness())
    step(history, walk)
    ends = path[[4, 8, 12]].astype(np.float64)
    a, b = ends[1] - ends[0], ends[2] - ends[1]
    assert history.straightness() == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)


def test_straightness_of_weights_that_do_not_move_is_zero(xp):
    history, _ = follow(xp, np.ones((13, 8)))
    assert history.straightness() == 0.0


def test_dot_and_norm_against_numpy(xp, path):
    walk = Walk(xp, path)
    a = walk.read_params()
    walk.at = 1
    b = walk.read_params()
    x, y = path[0].astype(np.float64), path[1].astype(np.float64)
    assert dot(a, b, xp) == pytest.approx(x @ y, rel=1e-5)
    assert norm(a, xp) == pytest.approx(np.linalg.norm(x), rel=1e-6)


def test_no_window_mixes_both_sides_of_a_break(xp, path):
    history, walk = follow(xp, path, 10)
    history.restart()
    assert not history.has_update
    assert history.window_means == ()
    for _ in range(4):
        step(history, walk)
    np.testing.assert_allclose(flat(history.window_means[0]), path[11:15].mean(axis=0), atol=2e-6)


def test_asking_too_early_says_so(path):
    history, _ = follow(np, path, 0)
    with pytest.raises(PredictionError, match="last update"):
        history.last_update()
    with pytest.raises(PredictionError, match="current weights"):
        history.current()
    history, _ = follow(np, path, 7)
    with pytest.raises(PredictionError, match="displacement"):
        history.displacement()


@pytest.mark.parametrize("need", sorted(NEEDS))
def test_only_what_is_needed_is_kept(path, need):
    history, _ = follow(NUMPY, path, 30, needs={need})
    assert history.has_update == (need == "last-update")
    assert bool(history.window_means) == (need == "window-means")
    assert np.isfinite(history.straightness()) == (need == "straightness")
    assert history.bytes_in_use() <= history.planned_bytes()


def test_an_unknown_need_is_an_error(path):
    with pytest.raises(PredictionError, match="does not keep"):
        follow(np, path, 0, needs={"hessian"})


def test_sleeping_keeps_nothing_but_the_straightness(path):
    history, walk = follow(NUMPY, path, 20)
    straight = history.straightness()
    history.sleep()
    assert history.bytes_in_use() == 0
    step(history, walk)
    assert history.bytes_in_use() == 0 and history.straightness() == straight
    history.wake()
    for _ in range(4):
        step(history, walk)
    np.testing.assert_allclose(flat(history.window_means[0]), path[22:26].mean(axis=0), atol=2e-6)


LAYOUT = ParamLayout.plan([("w", (2**18,), "float32", "cpu", None)])
"""One MiB per copy of the weights."""


@pytest.mark.parametrize(("budget", "windows"), [(100.0, 8), (9.5, 7), (5.0, 3), (4.0, 2)])
def test_f51_a_small_memory_budget_keeps_fewer_windows(budget, windows):
    config = HistoryConfig(windows=8, memory_budget_mib=budget)
    history = History(LAYOUT, np, config, {"window-means"})
    assert history.windows == windows
    assert history.planned_bytes() <= history.budget_bytes == budget * 2**20


def test_f51_what_others_reserve_counts():
    config = HistoryConfig(windows=8, memory_budget_mib=10.0)
    history = History(LAYOUT, np, config, {"window-means"}, reserved=3 * 2**20)
    assert history.windows == 5
    history.reserve(2**20)
    assert history.windows == 7
    history.reserve(6 * 2**20)
    assert history.windows == 2
    with pytest.raises(MemoryBudgetError):
        history.reserve(7 * 2**20)


def test_f51_a_budget_too_small_says_what_to_set():
    with pytest.raises(MemoryBudgetError) as caught:
        History(LAYOUT, np, HistoryConfig(memory_budget_mib=3.5), {"window-means"})
    assert "set history.memory_budget_mib to 4" in caught.value.fix
    assert caught.value.where == "history.memory_budget_mib"
    History(LAYOUT, np, HistoryConfig(memory_budget_mib=4), {"window-means"})


def test_f51_the_plan_holds_at_the_peak_of_allocation():
    """Arrays alive at once, work space included, as an allocator sees them."""
    layout = ParamLayout.plan([("w", (2**16,), "float32", "cpu", None)])
    path = np.random.default_rng(0).standard_normal((30, 2**16)).astype(np.float32)

    class Wide(Walk):
        def read_params(self, out=None):
            if out is None:
                return (self.path[self.at].copy(),)
            out[0][...] = self.path[self.at]
            return out

        def add_params(self, into, weight=1.0, decay=1.0):
            np.multiply(into[0], np.float32(decay), out=into[0])
            into[0][...] += self.path[self.at] if weight == 1.0 else weight * self.path[self.at]
            return into

    walk = Wide(NUMPY, path)
    for needs in ({"window-means"}, {"straightness"}, {"last-update"}, NEEDS):
        walk.at = 0
        history = History(layout, NUMPY, HistoryConfig(window=3, windows=3), needs)
        tracemalloc.start()
        for _ in range(29):
            step(history, walk)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= history.planned_bytes() + 30_000
        assert history.bytes_in_use() <= history.planned_bytes()


def test_f51_a_run_stays_inside_plan_and_budget():
    adapter = bowl(size=2000, optimizer=OptimizerSpec("adam", 0.01))
    config = configure(history={"windows": 6, "memory_budget_mib": 0.25})
    engine, recorder = build(adapter, config, Fixed(FixedConfig(full_steps=8, correct_steps=4)), Drift())
    for _ in range(100):
        drive(engine, 1)
        history = engine.history
        assert history.bytes_in_use() <= history.planned_bytes() <= history.budget_bytes
        if recorder.named("jump"):
            assert history.bytes_in_use() + adapter.snapshot_nbytes() <= history.planned_bytes()
    assert recorder.named("jump")
    assert 2 <= history.windows < 6


def test_f67_memory_is_flat_over_500_steps():
    gc.collect()
    gc.freeze()  # Everything from before stays out of the many collections below.
    tracemalloc.start()
    adapter, batches, probes = clouds(features=64)
    engine, _ = build(adapter, configure(), Fixed(FixedConfig(full_steps=4, correct_steps=4)), probes=probes)
    engine.events._members.clear()
    adapter.rates = type("Nothing", (), {"append": lambda self, value: None})()

    def highest(steps):
        most = 0
        for _ in range(steps // 3):  # every phase of a cycle, which holds its own arrays
            drive(engine, 3, batches)
            gc.collect()  # Also empties the interpreter's free lists, which count as allocated.
            most = max(most, tracemalloc.get_traced_memory()[0])
        return most

    drive(engine, 700, batches)  # Half of these are rolled back; the rings of statistics hold 256.
    jumps, early = engine.counts.jumps, highest(99)
    drive(engine, 400, batches)
    late = highest(99)
    tracemalloc.stop()
    gc.unfreeze()
    assert engine.counts.jumps > jumps + 20
    assert late <= 1.01 * early  # one float kept per step would be 5 % more
