"""The keeper over real runs of the engine: samples, share of the cost, determinism, memory, resume."""

from __future__ import annotations

import array_api_compat.numpy as xp
import attrs
import numpy as np
import pytest
from engine_lab import build, clouds, configure, drive

from hybridcore.config import DynamicsConfig
from hybridcore.dynamics.keeper import DynamicsKeeper
from hybridcore.dynamics.linear import Linear
from hybridcore.engine import Engine
from hybridcore.errors import MemoryBudgetError, PluginError
from hybridcore.plugins import load_registry
from hybridcore.protocols import Action, Phase, StepRecord

REAL = Action(Phase.FULL, 1, "")


class Kept(Engine):
    """An engine that calls a keeper as the documentation of the keeper asks."""

    keeper = None
    boundaries = 0
    jump = None

    def features(self):
        return self.statistics.features(
            phase=self.phase,
            phase_progress=0.0,
            progress=0.0,
            straightness=self.history.straightness(),
            moments=self.adapter.moments(),
        )

    def after_step(self, result):
        before, jumps = self.statistics.steps, self.counts.jumps
        action = self.jump or Action(self.phase, 1, "")
        seconds = 0.01
        phase = self.phase
        super().after_step(result)
        if self.statistics.steps == before + 1:
            record = StepRecord(self.real_steps, phase, result.loss, 1.0, 0.1, seconds)
            self.keeper.observe_step(record, self.features, action)
        else:
            self.keeper.interrupt()
        self.jump = None
        if self.counts.jumps > jumps:
            self.jump = Action(Phase.PREDICT, 0, "", predictor="last-update", horizon=10.0)
        if self.phase is not phase:
            steps = self.real_steps - self.boundaries
            self.boundaries = self.real_steps
            self.keeper.at_boundary(seconds, steps, examples=result.n_examples)


def run(steps=240, *, seed=0, name="linear", options=None, parameters=10**8, **table):
    """A driven engine with its keeper."""
    dynamics = DynamicsConfig(name=name, options={name: options or {}}, **{"stride": 1, **table})
    config = attrs.evolve(configure(), dynamics=dynamics)
    adapter, batches, probes = clouds(seed)
    engine, recorder = build(adapter, config, probes=probes)
    engine.__class__ = Kept
    engine.keeper = DynamicsKeeper.from_config(
        config, load_registry(), list(engine.predictors), parameters, np.random.default_rng(seed), xp
    )
    drive(engine, steps, batches)
    return engine, recorder


def test_f3_every_step_of_a_real_run_becomes_a_sample():
    engine, recorder = run()
    assert recorder.named("jump")
    # A rollback's first steps have nothing before them, and the first losses only set the level.
    assert 200 <= engine.keeper.model.samples <= 239
    assert engine.keeper.updates > 5
    rollout = engine.keeper.rollout(engine.features(), REAL, 10)
    assert rollout.confidence > 0.0
    assert np.isfinite(rollout.mean).all()


def test_f72_the_same_seed_gives_the_same_model():
    for name, options in (("mlp", {"hidden": [8]}), ("linear", {})):
        first, second, other = (run(120, seed=s, name=name, options=options)[0].keeper for s in (0, 0, 1))
        features = np.zeros(28)
        means = [k.rollout(features, REAL, 8).mean for k in (first, second, other)]
        np.testing.assert_array_equal(means[0], means[1])
        assert (means[0] != means[2]).any()


def fed(keeper, steps, every=10, examples=64, seconds=0.01):
    losses = 1.0 + 1.0 / np.arange(1, steps + 1)
    for t in range(1, steps + 1):
        record = StepRecord(t, Phase.FULL, float(losses[t - 1]), 1.0, 0.1, seconds)
        keeper.observe_step(record, lambda: np.zeros(28), REAL)
        if t % every == 0:
            keeper.at_boundary(seconds, every, examples)
    return keeper


class Counting(Linear):
    """Counts what it is asked to do, at a stated price."""

    price, asked = 1e6, ()

    def train(self, updates):
        self.asked = (*self.asked, updates)
        return updates

    @property
    def flops_per_update(self):
        return self.price


def keeper_of(model, *, parameters=1000, **table):
    model.reset([], np.random.default_rng(0), xp, 50 << 20)
    return DynamicsKeeper(model, DynamicsConfig(**{"name": "linear", "stride": 1, **table}), parameters)


@pytest.mark.parametrize("share", [0.005, 0.05])
def test_training_takes_no_more_than_its_share(share):
    """Updates plus one calibration each time, at their stated price, against 6 N B per real step."""
    keeper = fed(keeper_of(Counting(), share=share), 4000)
    spent = sum(keeper.model.asked) * 1e6 + len(keeper.model.asked) * 1e6
    allowed = share * 4000 * 6.0 * 1000 * 64
    assert allowed - 2e6 <= spent <= allowed


def test_updates_per_boundary_are_bounded():
    keeper = fed(keeper_of(Counting(), share=1.0, parameters=10**9, max_updates=7), 100)
    assert set(keeper.model.asked) == {7}
    assert fed(keeper_of(Counting(), share=1.0, max_updates=0), 100).updates == 0
    assert fed(keeper_of(Counting(), share=0.0), 100).updates == 0


def test_f72_clocks_count_only_where_asked(monkeypatch):
    import time

    now = iter(np.arange(0.0, 1e6, 1.0))  # each training takes a second
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    plain = fed(keeper_of(Counting(), share=1.0, parameters=10**9), 400)
    timed = fed(keeper_of(Counting(), share=1.0, parameters=10**9, count_seconds=True), 400)
    assert plain.updates == 40 * 32
    assert timed.seconds <= 400 * 0.01 + 1.0 < plain.seconds


def test_features_are_worked_out_once_per_stride():
    calls = []
    keeper = keeper_of(Linear(), stride=5)
    for t in range(1, 102):
        record = StepRecord(t, Phase.FULL, 1.0, 1.0, 0.1, 0.01)
        keeper.observe_step(record, lambda: calls.append(1) or np.zeros(28), REAL)
    assert len(calls) == 21
    assert keeper.model.samples == 20 - 8


def test_f15_a_stride_keeps_the_alignment_in_steps():
    """A straight line: entry k - 1 of the keeper's forecast is about the loss k real steps later."""
    keeper = keeper_of(Linear(Linear.Config(l2=1e-6)), stride=4, share=1.0, parameters=10**9)
    for t in range(1, 1602):
        record = StepRecord(t, Phase.FULL, 10.0 - 0.01 * t, 1.0, 0.1, 0.01)
        keeper.observe_step(record, lambda: np.zeros(28), REAL)
        if t % 20 == 0:
            keeper.at_boundary(0.01, 20, 64)
    got = keeper.rollout(np.zeros(28), REAL, 16).mean
    np.testing.assert_allclose(got[3:], 10.0 - 0.01 * (1601 + np.arange(4, 17)), atol=8e-3)


def test_a_jump_between_observations_is_the_action():
    seen = []

    class Hears(Linear):
        def observe(self, features, action, outcome):
            seen.append(action.phase)

    keeper = keeper_of(Hears(), stride=3)
    jump = Action(Phase.PREDICT, 0, "", predictor="drift", horizon=5.0)
    for t in range(1, 11):
        record = StepRecord(t, Phase.FULL, 1.0, 1.0, 0.1, 0.01)
        keeper.observe_step(record, lambda: np.zeros(28), jump if t == 6 else REAL)
    assert seen == [Phase.FULL, Phase.PREDICT, Phase.FULL]


def test_a_loss_that_is_not_finite_breaks_the_path():
    keeper = fed(keeper_of(Linear()), 30)
    before = keeper.model.samples
    keeper.observe_step(StepRecord(31, Phase.FULL, float("nan"), 1.0, 0.1, 0.01), lambda: np.zeros(28), REAL)
    keeper.observe_step(StepRecord(32, Phase.FULL, 1.0, 1.0, 0.1, 0.01), lambda: np.zeros(28), REAL)
    assert keeper.model.samples == before
    assert np.isfinite(keeper.rollout(np.zeros(28), REAL, 4).mean).all()


def test_f51_memory():
    engine, _ = run(100, name="rssm", options={"hidden": 8, "deterministic": 8}, memory_budget_mib=0.3)
    assert engine.keeper.nbytes <= 0.3 * 2**20
    with pytest.raises(MemoryBudgetError, match=r"dynamics\.memory_budget_mib"):
        run(1, name="rssm", memory_budget_mib=0.1)


def test_f53_resume_in_mid_interval():
    rest = [(t, 1.0 + 1.0 / t) for t in range(34, 80)]
    keeper = fed(keeper_of(Linear(), stride=4, share=1.0, parameters=10**9), 33)
    heir = keeper_of(Linear(), stride=4, share=1.0, parameters=10**9)
    heir.load_state_dict(keeper.state_dict())
    for one in (keeper, heir):
        for t, loss in rest:
            one.observe_step(StepRecord(t, Phase.FULL, loss, 1.0, 0.1, 0.01), lambda: np.ones(28), REAL)
            if t % 10 == 0:
                one.at_boundary(0.01, 10, 64)
    np.testing.assert_array_equal(
        keeper.rollout(np.ones(28), REAL, 8).mean, heir.rollout(np.ones(28), REAL, 8).mean
    )
    assert keeper.updates == heir.updates > 0


def test_none_keeps_nothing_and_a_wrong_name_is_an_error():
    config = configure()
    arguments = ([], 10, np.random.default_rng(0), xp)
    assert DynamicsKeeper.from_config(config, load_registry(), *arguments) is None
    wrong = attrs.evolve(config, dynamics=DynamicsConfig(name="rsm"))
    with pytest.raises(PluginError, match="did you mean 'rssm'"):
        DynamicsKeeper.from_config(wrong, load_registry(), *arguments)
