from __future__ import annotations

import numpy as np
import pytest
from engine_lab import (
    Proposes,
    Scripted,
    bits,
    bowl,
    build,
    configure,
    correct,
    drive,
    full,
    predict,
)

from hybridcore.averaging import RunningAverage
from hybridcore.config import AverageConfig
from hybridcore.errors import MemoryBudgetError, PredictionError
from hybridcore.protocols import OptimizerSpec
from hybridcore.reference import ReferenceAdapter

KEEP = {"average": {"enabled": True, "every": 1, "share": 1.0, "max_memory": 8.0}}


class Walk:
    """Adapter whose weights are set by hand; only what an average asks for."""

    capabilities = frozenset()

    def __init__(self):
        self.w = np.zeros(3)
        self.reads = self.adds = 0

    def read_params(self, out=None):
        self.reads += 1
        return (self.w.astype(np.float32),)

    def add_params(self, into, weight=1.0, decay=1.0):
        self.adds += 1
        return (decay * into[0] + np.float32(weight) * self.w.astype(np.float32),)


def truth(path, *, every, share, max_memory):
    """The recursion in float64, one sample every `every` steps."""
    mean, samples = None, 0
    for step, w in enumerate(path, 1):
        if step % every:
            continue
        memory = min(max_memory, share * step)
        rate = max(min(1.0, every / memory), 1.0 / (samples + 1))
        mean = w if mean is None else (1 - rate) * mean + rate * w
        samples += 1
    return mean


@pytest.mark.parametrize(
    ("every", "share", "max_memory"), [(1, 0.1, 100.0), (4, 0.1, 100.0), (3, 0.5, 20.0), (7, 1.0, 5.0)]
)
def test_the_mean_is_the_recursion(every, share, max_memory):
    walk, config = Walk(), AverageConfig(enabled=True, every=every, share=share, max_memory=max_memory)
    average = RunningAverage(config)
    path = np.random.default_rng(0).standard_normal((300, 3)).cumsum(0)
    for w in path:
        walk.w = w
        average.after_step(walk)
    expected = truth(path, every=every, share=share, max_memory=max_memory)
    np.testing.assert_allclose(average.mean[0], expected, rtol=1e-4)
    assert walk.reads + walk.adds == 300 // every, "one pass every few steps, no more"


def test_with_share_one_it_starts_as_the_plain_mean():
    walk = Walk()
    average = RunningAverage(AverageConfig(enabled=True, every=2, share=1.0, max_memory=1e9))
    path = np.random.default_rng(1).standard_normal((40, 3))
    for w in path:
        walk.w = w
        average.after_step(walk)
    np.testing.assert_allclose(average.mean[0], path[1::2].mean(0), atol=1e-6)


def test_memory_is_the_lag_behind_a_steady_drift():
    """An exponential mean with rate a per sample lags (1 - a) / a samples behind a line."""
    walk = Walk()
    average = RunningAverage(AverageConfig(enabled=True, every=4, share=0.5, max_memory=40.0))
    for step in range(1, 2001):
        walk.w = np.full(3, float(step))
        average.after_step(walk)
    assert average.mean[0][0] == pytest.approx(2000 - 4 * (1 - 0.1) / 0.1, abs=0.05)


def test_after_a_restart_nothing_of_the_past_is_left():
    walk = Walk()
    average = RunningAverage(AverageConfig(enabled=True, every=1, share=1.0, max_memory=50.0))
    walk.w = np.full(3, np.inf)
    for _ in range(30):
        average.after_step(walk)
    average.restart()
    assert average.mean is None
    for value in (1.0, 2.0, 6.0):
        walk.w = np.full(3, value)
        average.after_step(walk)
    np.testing.assert_allclose(average.mean[0], 3.0)


def test_the_average_of_a_noisy_run_is_nearer_to_the_optimum():
    adapter = bowl(noise=3.0, condition=2.0, optimizer=OptimizerSpec("sgd", 0.3), kind=ReferenceAdapter)
    average = RunningAverage(AverageConfig(enabled=True))
    for _ in range(1500):
        adapter.train_step(None)
        average.after_step(adapter)
    last = np.linalg.norm(adapter.params["w"] - adapter.optimum)
    assert np.linalg.norm(average.mean[0] - adapter.optimum) < 0.4 * last


def test_averaged_puts_the_mean_in_place_and_everything_back():
    adapter = bowl(noise=1.0)
    engine, _ = build(adapter, configure(**KEEP), Scripted(full(1)), probes=[None])
    with engine.averaged():
        assert bits(adapter.params) == bits(bowl(noise=1.0).params), "nothing sampled yet"
    drive(engine, 30)
    before = bits(adapter.snapshot())
    with engine.averaged():
        np.testing.assert_array_equal(adapter.read_params()[0], engine.average.mean[0])
    assert bits(adapter.snapshot()) == before


class WithStatistics(ReferenceAdapter):
    """Reference adapter with one normalisation statistic that belongs to the weights."""

    capabilities = frozenset({"batch-statistics"})
    statistic = 0.0

    def refresh_statistics(self, batches):
        assert tuple(batches) == ("probe",)
        self.statistic = float(self.params["w"].sum())

    def snapshot(self):
        return super().snapshot(), self.statistic

    def restore(self, snapshot):
        super().restore(snapshot[0])
        self.statistic = snapshot[1]


def test_f86_statistics_are_estimated_for_the_mean_and_put_back():
    adapter = bowl(kind=WithStatistics)
    engine, _ = build(adapter, configure(**KEEP), Scripted(full(1)), probes=["probe"])
    drive(engine, 20)
    adapter.statistic = 7.0
    with engine.averaged():
        assert adapter.statistic == pytest.approx(float(engine.average.mean[0].sum()), rel=1e-5)
    assert adapter.statistic == 7.0
    with pytest.raises(RuntimeError, match="stop"), engine.averaged():
        raise RuntimeError("stop")
    assert adapter.statistic == 7.0


def test_adopting_makes_the_mean_final():
    adapter = bowl(noise=1.0)
    engine, _ = build(adapter, configure(**KEEP), Scripted(full(1)), probes=[None])
    drive(engine, 30)
    mean = engine.average.mean[0].copy()
    engine.adopt_average()
    np.testing.assert_array_equal(adapter.read_params()[0], mean)
    drive(engine, 3)
    assert engine.average.samples == 3


@pytest.mark.parametrize("name", ["averaged", "adopt_average"])
def test_without_an_average_the_key_is_named(name):
    engine, _ = build(bowl(), configure(), Scripted(), probes=[None])
    with pytest.raises(PredictionError) as caught, engine.averaged():
        pass
    assert caught.value.where == "average.enabled"
    with pytest.raises(PredictionError):
        engine.adopt_average()


def test_a_failed_trial_leaves_nothing_in_the_mean():
    adapter = bowl(condition=2.0)
    away = Proposes(lambda h, z: tuple(1e4 * np.ones_like(b) for b in h.current()))
    config = configure(**KEEP, probe={"tentative": False}, groups={"max_relative_jump": 1e9})
    script = Scripted(full(4), full(4), predict(settle=4), correct(4))
    engine, recorder = build(adapter, config, script, away, probes=[None])
    while not recorder.named("rollback"):
        drive(engine, 1)
    assert engine.average.samples == 0
    path = []
    for _ in range(6):
        drive(engine, 1)
        path.append(adapter.read_params()[0].astype(np.float64))
    np.testing.assert_allclose(engine.average.mean[0], np.mean(path, 0), rtol=1e-5)


def test_training_is_the_same_with_and_without_the_average():
    runs = []
    for tables in ({}, KEEP):
        adapter = bowl(noise=0.5, condition=2.0)
        engine, recorder = build(adapter, configure(**tables, budget={"count_seconds": False}), probes=[None])
        drive(engine, 80)
        runs.append((recorder.trace(), bits(adapter.snapshot())))
    assert runs[0] == runs[1]


def test_its_memory_is_part_of_the_plan():
    plans = []
    bare = {"recovery": {"snapshot_every": 0}}
    for tables in ({}, KEEP):
        engine, _ = build(bowl(), configure(**tables, **bare, history={"windows": 2}), probes=[None])
        drive(engine, 40)
        plans.append(engine.summary()["history_bytes"])
        assert engine.counts.jumps > 0, "opening a trial reserves anew"
    assert plans[1] - plans[0] == bowl().layout.nbytes
    tight = {"memory_budget_mib": (plans[0] + 8) / 2**20}
    build(bowl(), configure(history=tight, **bare), probes=[None])
    with pytest.raises(MemoryBudgetError):
        build(bowl(), configure(history=tight, **bare, **KEEP), probes=[None])


def test_a_stored_mean_goes_on():
    walk, config = Walk(), AverageConfig(enabled=True, every=2, share=0.3)
    path = np.random.default_rng(3).standard_normal((60, 3))
    one, other = RunningAverage(config), RunningAverage(config)
    for step, w in enumerate(path):
        walk.w = w
        one.after_step(walk)
        if step == 30:
            other.load_state_dict(one.state_dict())
        elif step > 30:
            other.after_step(walk)
    np.testing.assert_array_equal(one.mean[0], other.mean[0])
