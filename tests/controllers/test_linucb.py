from __future__ import annotations

import math
import time

import numpy as np
import pytest
from engine_lab import bowl, build, clouds, configure, drive

from hybridcore.components import build_component
from hybridcore.controllers.linucb import CONTEXT_SIZE, Arm, LinUcb, LinUcbConfig, context
from hybridcore.engine import Engine
from hybridcore.errors import ConfigError, PluginError
from hybridcore.predictors.drift import Drift
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.protocols import Outcome, Phase, StepRecord
from hybridcore.state import EngineState, Statistics


def state(**fields):
    given = {
        "step": 100,
        "phase": Phase.FULL,
        "consecutive_predicts": 0,
        "may_predict": True,
        "why_not": None,
        "confidence": 0.5,
        "straightness": 0.5,
        "reach": math.nan,
        "next_sample": 0,
        "trial_steps_left": 0,
        "learning_rate": 0.1,
        "peak_learning_rate": 0.1,
        "momentum_memory": 1.0,
        "normalised": False,
        "forecast": None,
        "statistics": Statistics(),
        "predictor_ready": {"last-update": True, "drift": True},
        "default_predictor": "last-update",
        "window": 10,
    }
    return EngineState(**{**given, **fields})


def outcome(credit, *, kept=True, jumps=1, real_steps=10, seconds=0.0):
    return Outcome(kept, "last-update", 10.0, jumps, real_steps, 0.1, 0.01, credit, seconds, 0.5, "test")


def test_the_bound_is_that_of_ridge_regression():
    """Against least squares on data extended by sqrt(ridge) rows, and the explicit inverse."""
    rng = np.random.default_rng(0)
    xs, rewards = rng.standard_normal((40, CONTEXT_SIZE)), rng.standard_normal(40)
    arm = Arm(0.7)
    for x, reward in zip(xs, rewards, strict=True):
        arm.learn(x, reward)
    extended = np.vstack([xs, math.sqrt(0.7) * np.eye(CONTEXT_SIZE)])
    theta = np.linalg.lstsq(extended, np.append(rewards, np.zeros(CONTEXT_SIZE)), rcond=None)[0]
    x = rng.standard_normal(CONTEXT_SIZE)
    width = math.sqrt(x @ np.linalg.inv(xs.T @ xs + 0.7 * np.eye(CONTEXT_SIZE)) @ x)
    assert arm.bound(x, 0.0) == pytest.approx(theta @ x)
    assert arm.bound(x, 2.0) == pytest.approx(theta @ x + 2.0 * width)


def play(controller, mean, rounds, *, noise=0.3, seed=0, straightness=None):
    """Rounds of choose and feedback; regret of each against the best arm of its context."""
    rng = np.random.default_rng(seed)
    regrets, arms = [], []
    for _ in range(rounds):
        rho = float(rng.uniform(0.0, 1.0)) if straightness is None else straightness
        action = controller.choose(state(straightness=rho, confidence=rho))
        assert action.phase is Phase.PREDICT
        key = (action.predictor, action.horizon / 10)
        best = max(mean(k, rho) for k in controller.arms)
        regrets.append(best - mean(key, rho))
        arms.append(key)
        controller.feedback(outcome(10 * (mean(key, rho) + noise * rng.standard_normal())))
    return np.array(regrets), arms


MEANS = dict(zip((0.5, 1.0, 2.0, 4.0, 8.0), (0.3, 0.6, 0.9, 0.5, 0.2), strict=True))


def stationary(key, rho):
    return MEANS[key[1]] + (0.2 if key[0] == "drift" else 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_f45_regret_on_stationary_rewards(seed):
    """Sublinear, and far below that of an arm picked at random; the best fixed arm has none."""
    controller = LinUcb(LinUcbConfig(discount=1.0))
    regrets, arms = play(controller, stationary, 1200, seed=seed)
    random = np.mean([1.1 - stationary((n, m), 0) for m in MEANS for n in controller.portfolio])
    assert regrets.sum() < 0.15 * random * regrets.size
    assert regrets[600:].sum() < 0.35 * regrets[:600].sum()
    assert max(set(arms[600:]), key=arms[600:].count) == ("drift", 2.0)


def test_f45_the_best_arm_may_depend_on_the_context():
    """Long horizons pay on straight paths only."""

    def mean(key, rho):
        return 0.4 if key[1] == 0.5 else 1.2 * rho - 0.2 if key[1] == 8.0 else 0.0

    controller = LinUcb(LinUcbConfig(portfolio=("drift",), multipliers=(0.5, 1.0, 8.0), discount=1.0))
    play(controller, mean, 1500)
    picks = {rho: controller.choose(state(straightness=rho, confidence=rho)).horizon for rho in (0.1, 0.95)}
    assert picks == {0.1: 5.0, 0.95: 80.0}


def test_f45_with_a_discount_it_follows_rewards_that_change():
    def first(key, rho):
        return 0.8 if key[1] == 1.0 else 0.2

    def then(key, rho):
        return 0.8 if key[1] == 4.0 else 0.2

    late = {}
    for discount in (0.98, 1.0):
        controller = LinUcb(LinUcbConfig(portfolio=("drift",), multipliers=(1.0, 4.0), discount=discount))
        play(controller, first, 600, straightness=0.5)
        late[discount] = play(controller, then, 300, straightness=0.5)[0].sum()
    assert late[0.98] < 0.7 * late[1.0]


def test_no_jump_where_no_arm_promises_enough():
    controller = LinUcb(LinUcbConfig(portfolio=("drift",), multipliers=(1.0,), discount=1.0))
    actions = []
    for _ in range(100):
        actions.append(controller.choose(state()))
        if actions[-1].phase is Phase.PREDICT:
            controller.feedback(outcome(0.0, kept=False))
    assert actions[0].phase is Phase.PREDICT
    assert {a.phase for a in actions[10:]} == {Phase.FULL}
    assert "no arm promises" in actions[-1].reason


def test_rewards_of_every_kind_of_outcome():
    def learned(result, **config):
        controller = LinUcb(LinUcbConfig(portfolio=(), multipliers=(1.0,), **config))
        controller.choose(state())
        controller.feedback(result)
        return controller.arms["last-update", 1.0].moment[0]

    assert learned(outcome(25.0)) == 2.5
    assert learned(outcome(9.0, kept=False)) == -1.0
    assert learned(outcome(0.0, kept=False, jumps=0)) == 0.0


def test_rewards_in_seconds_are_credit_over_the_time_of_the_trial(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    controller = LinUcb(LinUcbConfig(portfolio=(), multipliers=(1.0,), reward="seconds"))
    controller.choose(state())
    now[0] = 4.0
    controller.feedback(outcome(25.0, seconds=6.0))
    assert controller.arms["last-update", 1.0].moment[0] == 1.5


def test_an_empty_portfolio_is_the_default_predictor_alone():
    controller = LinUcb(LinUcbConfig(portfolio=()))
    assert controller.portfolio == ()
    controller.choose(state(default_predictor="drift"))
    assert {name for name, _ in controller.arms} == {"drift"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"may_predict": False, "why_not": "paused until step 7"}, "paused until step 7"),
        ({"predictor_ready": {"drift": False}}, "no predictor is ready"),
    ],
)
def test_where_nothing_can_be_predicted_it_says_why(fields, reason):
    action = LinUcb(LinUcbConfig(full_steps=13)).choose(state(**fields))
    assert (action.phase, action.length, action.reason) == (Phase.FULL, 13, reason)


def test_only_predictors_that_are_ready_are_played():
    controller = LinUcb(LinUcbConfig(alpha=10.0))
    for _ in range(20):
        action = controller.choose(state(predictor_ready={"last-update": False, "drift": True}))
        assert action.predictor == "drift"
        controller.feedback(outcome(0.0))


def test_the_context_has_no_scale():
    def of(scale):
        statistics = Statistics()
        rng = np.random.default_rng(0)
        for step in range(1, 90):
            loss = scale * (3.0 / step + 0.1 * float(rng.random()))
            statistics.observe(StepRecord(step, Phase.FULL, loss, 1.0, 0.1, 0.01))
        return context(
            state(statistics=statistics, learning_rate=0.02 * scale, peak_learning_rate=0.1 * scale)
        )

    np.testing.assert_allclose(of(1.0), of(1000.0), atol=1e-12)
    assert np.abs(of(1.0)).max() <= 1.0
    assert np.isfinite(context(state(straightness=math.nan, learning_rate=math.nan))).sum() >= 5


def test_a_stored_bandit_goes_on_alike():
    one, other = LinUcb(), LinUcb()
    play(one, stationary, 50)
    other.load_state_dict(one.state_dict())
    assert play(one, stationary, 50, seed=9)[1] == play(other, stationary, 50, seed=9)[1]


OPTIONS = {
    "portfolio": ("drift",),
    "multipliers": (1.0,),
    "alpha": 3.0,
    "ridge": 0.05,
    "discount": 0.5,
    "least_reward": 5.0,
    "full_steps": 7,
    "correct_steps": 5,
}


def run(**options):
    adapter, batches, probes = clouds(spread=1.0)
    predictors = {"last-update": LastUpdate(), "drift": Drift()}
    config = configure(budget={"count_seconds": False})
    engine, recorder = build(adapter, config, LinUcb(LinUcbConfig(**options)), predictors, probes)
    drive(engine, 400, batches)
    return recorder


@pytest.mark.parametrize("option", OPTIONS)
def test_f57_every_option_changes_a_run(option):
    assert run().trace() == run().trace()
    assert run(**{option: OPTIONS[option]}).trace() != run().trace()


def test_f45_the_option_switches_the_horizon_arms():
    jumps = {name: run(**o).named("jump") for name, o in {"many": {}, "one": {"multipliers": (1.0,)}}.items()}
    assert len({j["horizon"] for j in jumps["many"]}) > 1
    assert {j["predictor"] for j in jumps["many"]} == {"last-update", "drift"}
    assert len({round(j["horizon"], 6) for j in jumps["one"]}) == 1


def test_the_engine_builds_what_the_portfolio_names():
    config = configure(controller={"name": "linucb", "options": {"linucb": {"portfolio": ["drift"]}}})
    engine = Engine.from_config(bowl(), config, probes=[None])
    assert list(engine.predictors) == ["last-update", "drift"]
    config = configure(controller={"name": "linucb", "options": {"linucb": {"portfolio": []}}})
    assert list(Engine.from_config(bowl(), config, probes=[None]).predictors) == ["last-update"]
    config = configure(controller={"name": "linucb", "options": {"linucb": {"portfolio": ["drif"]}}})
    with pytest.raises(PluginError, match="drift"):
        Engine.from_config(bowl(), config, probes=[None])


@pytest.mark.parametrize(
    "options", [{"multipliers": []}, {"multipliers": [0.0]}, {"portfolio": ["drift", "drift"]}]
)
def test_options_that_make_no_arms_are_refused(options):
    with pytest.raises(ConfigError):
        build_component(LinUcb, options, "controller.linucb")
