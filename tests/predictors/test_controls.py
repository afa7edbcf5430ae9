from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from engine_lab import Scripted, bits, bowl, build, clouds, configure, drive, full, predict

from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.predictors.controls import Frozen, NoPrediction, RandomJump
from hybridcore.predictors.drift import Drift
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.protocols import OptimizerSpec


@pytest.mark.parametrize("mode", ["jump", "step"])
def test_f74_frozen_leaves_the_weights_bit_for_bit(mode):
    adapter = bowl(optimizer=OptimizerSpec("adam", 0.01))
    config = configure(phases={"predict_mode": mode, "predict_steps": 3})
    engine, recorder = build(adapter, config, Scripted(full(4), predict(25.0, 30)), Frozen())
    drive(engine, 8)
    before = bits(adapter.snapshot()) if mode == "step" else bits(engine._trials.trial.snapshot)
    if mode == "step":
        drive(engine, 3)
    assert len(recorder.named("jump")) == 1
    assert bits(adapter.snapshot()) == before


@pytest.mark.parametrize("horizon", [1.0, 10.0, 37.0])
def test_f74_random_jumps_as_far_as_last_update_but_elsewhere(horizon):
    def moved(predictor):
        adapter = bowl(size=500)
        script = Scripted(full(4), predict(horizon, 30, judge="guard"))
        config = configure(probe={"tentative": False}, groups={"max_relative_jump": 100.0})
        engine, _ = build(adapter, config, script, predictor, probes=[None])
        drive(engine, 8)
        return adapter.params["w"] - engine._trials.trial.snapshot[0]["w"]

    straight, random = moved(LastUpdate()), moved(RandomJump())
    assert np.linalg.norm(random) == pytest.approx(np.linalg.norm(straight), rel=1e-4)
    cosine = random @ straight / np.linalg.norm(random) / np.linalg.norm(straight)
    assert abs(cosine) < 0.2


def test_f72_random_continues_the_same_numbers_after_a_round_trip():
    engine, _ = build(bowl(), configure(), Scripted(), RandomJump())
    drive(engine, 5)
    one, other = RandomJump(), RandomJump()
    one.reset(engine.adapter.layout, np.random.default_rng(1))
    other.reset(engine.adapter.layout, np.random.default_rng(2))
    one.predict(engine.history, 1.0, xp)
    other.load_state_dict(one.state_dict())
    first = one.predict(engine.history, 1.0, xp).deltas[0]
    np.testing.assert_array_equal(first, other.predict(engine.history, 1.0, xp).deltas[0])
    assert not np.array_equal(first, one.predict(engine.history, 1.0, xp).deltas[0])


def test_f74_none_is_the_plain_run():
    adapter, batches, probes = clouds(optimizer=OptimizerSpec("momentum", 0.02))
    plain, same, _ = clouds(optimizer=OptimizerSpec("momentum", 0.02))
    engine, recorder = build(adapter, configure(), Fixed(), NoPrediction(), probes)
    drive(engine, 60, batches)
    for _ in range(60):
        plain.train_step(next(same))
    assert bits(adapter.snapshot()) == bits(plain.snapshot())
    assert recorder.named("jump") == [] and engine.summary()["predicted_steps"] == 0.0


def loss_at_cost(predictor, cost, seed, problem):
    """Held-out loss when the engine has spent `cost` steps, probes and failed trials included."""
    adapter, batches, probes = problem(seed)
    controller = Fixed(FixedConfig(horizon=10.0, full_steps=12, correct_steps=4))
    engine, recorder = build(
        adapter, configure(budget={"count_seconds": False}), controller, predictor, probes
    )
    while engine.counts.cost < cost:
        drive(engine, 1, batches)
    if not isinstance(predictor, NoPrediction):
        assert recorder.named("jump") or recorder.named("jump-refused")
    return float(np.mean([adapter.probe_loss(b).mean() for b in probes]))


def ill_conditioned(seed):
    adapter = bowl(seed, condition=100.0, optimizer=OptimizerSpec("sgd", 0.02))
    return adapter, iter(lambda: None, 0), [None]


def logistic(seed):
    return clouds(seed, optimizer=OptimizerSpec("sgd", 0.01))


CONTROLS = [Frozen, RandomJump, NoPrediction]


@pytest.mark.parametrize(
    ("problem", "kind", "controls"),
    [
        (ill_conditioned, LastUpdate, CONTROLS),
        (ill_conditioned, Drift, CONTROLS),
        (logistic, Drift, CONTROLS),
        # Of small batches the last update is mostly noise: it beats the jumping controls, not the plain run.
        (logistic, LastUpdate, CONTROLS[:2]),
    ],
)
def test_f74_predictors_beat_the_controls_at_equal_cost_on_a_convex_problem(problem, kind, controls):
    for seed in range(3):
        reached = loss_at_cost(kind(), 200.0, seed, problem)
        for control in [make() for make in controls]:
            assert reached < loss_at_cost(control, 200.0, seed, problem), (seed, control.name)
