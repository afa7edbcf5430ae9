from __future__ import annotations

import itertools
import math

import attrs
import numpy as np
import pytest
from engine_lab import Proposes, Scripted, bits, bowl, build, clouds, configure, correct, drive, full, predict
from scipy.stats import linregress

from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.predictors.drift import Drift
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.protocols import OptimizerSpec
from hybridcore.reference import scheduled_rate

UPHILL = {"groups": {"max_relative_jump": 1e9}}
OPTIMIZERS = ["sgd", "momentum", "adam"]


def tangent(older, newer, apart, age):
    """Slope at the newer of two points of a power of the steps."""
    return -math.log(older / newer) / math.log(age / (age - apart)) * newer / age


def away(by):
    """Predictor that jumps by `by` in every weight."""
    return Proposes(lambda history, horizon: tuple(by + 0.0 * b for b in history.current()))


def spec(name):
    return OptimizerSpec(name, 0.02, schedule="cosine", total_steps=200, warmup_steps=5)


def plain_path(steps, adapter):
    for _ in range(steps):
        adapter.train_step(None)
    return bits(adapter.snapshot())


# -- the tentative test: F81 -------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_f81_a_refused_jump_leaves_no_trace_in_the_model(optimizer):
    adapter = bowl(noise=0.2, optimizer=spec(optimizer))
    script = Scripted(full(4), predict())
    engine, recorder = build(adapter, configure(**UPHILL), script, away(50.0), probes=[None])
    drive(engine, 30)
    (refusal,) = recorder.named("jump-refused")
    assert "loss rose" in refusal["reason"]
    assert recorder.named("jump") == [] and recorder.named("rollback") == []
    assert bits(adapter.snapshot()) == plain_path(30, bowl(noise=0.2, optimizer=spec(optimizer)))
    assert script.outcomes[0].kept is False


def test_f81_all_probes_of_a_trial_read_the_same_examples():
    adapter, batches, probes = clouds()
    engine, _ = build(adapter, configure(), Scripted(full(8), predict(settle=6)), probes=probes)
    read = []
    inner = adapter.probe_loss
    adapter.probe_loss = lambda batch: read.append(id(batch)) or inner(batch)
    drive(engine, 24, batches)
    pairs = [tuple(read[i : i + 2]) for i in range(0, len(read), 2)]
    assert len(pairs) >= 4 and set(pairs) == {(id(probes[0]), id(probes[1]))}


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("times", "refused"), [(0.98, False), (1.02, True)])
def test_f81_the_limit_is_the_tolerated_share_of_the_loss(tolerance, times, refused):
    """On a quadratic with one example the error is zero, so the limit is the share alone."""
    adapter = bowl(size=1, condition=1.0)
    share = tolerance if tolerance else 1e-9

    def jump(history, horizon):
        gap = adapter.params["w"] - adapter.optimum
        wanted = np.sqrt(1.0 + (times * share if tolerance else (share if refused else -share)))
        return ((gap * (wanted - 1.0)).astype(np.float32),)

    if not tolerance:
        jump_small = 1e-3 if refused else -1e-3
        jump = lambda h, z: (((adapter.params["w"] - adapter.optimum) * jump_small).astype(np.float32),)  # noqa: E731
    config = configure(probe={"tolerance": tolerance}, **UPHILL)
    engine, recorder = build(adapter, config, Scripted(full(4), predict()), Proposes(jump), probes=[None])
    drive(engine, 8)
    assert len(recorder.named("jump-refused")) == int(refused)
    assert len(recorder.named("jump")) == int(not refused)


def test_f81_noise_is_no_clear_damage():
    """Mean rise of 0.5 with standard error 1: refused at no errors beyond the tolerance, kept at two."""
    for z, refused in ((0.0, True), (2.0, False)):
        adapter, _, probes = clouds()
        config = configure(probe={"tolerance": 0.0, "confidence_z": z})
        engine, _ = build(adapter, config, probes=probes)
        before = np.zeros(4)
        after = np.array([0.5 + math.sqrt(3), 0.5 - math.sqrt(3), 0.5 + math.sqrt(3), 0.5 - math.sqrt(3)])
        engine._trials.probe = lambda weights, after=after: after
        difference, why = engine._trials.compare(before)
        assert difference.error == pytest.approx(1.0)
        assert (why is not None) == refused


def test_f81_a_jump_to_non_finite_losses_is_refused():
    adapter, batches, probes = clouds()
    script = Scripted(full(4), predict())
    engine, recorder = build(adapter, configure(**UPHILL), script, away(1e15), probes=probes)
    adapter.probe_loss = lambda batch, inner=adapter.probe_loss: (
        inner(batch) / (0.0 if np.abs(adapter.params["weight"]).max() > 1e5 else 1.0)
    )
    with np.errstate(all="ignore"):
        drive(engine, 12, batches)
    (refusal,) = recorder.named("jump-refused")
    assert refusal["reason"] == "non-finite loss right after the jump"
    assert np.isfinite(adapter.params["weight"]).all()


# -- verdicts and rollbacks: F82 ---------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["jump", "step"])
@pytest.mark.parametrize("judge", ["probe", "guard"])
def test_f82_a_failed_trial_restores_everything_and_the_run_goes_on_as_if_it_never_was(
    optimizer, mode, judge
):
    """Real steps before the jump plus those after the rollback equal a run that never jumped, to the bit."""
    adapter = bowl(noise=0.2, optimizer=spec(optimizer))
    config = configure(
        probe={"tentative": False}, phases={"predict_mode": mode, "predict_steps": 3}, **UPHILL
    )
    script = Scripted(full(4), predict(settle=6, judge=judge), correct(6))
    engine, recorder = build(adapter, config, script, away(50.0), probes=[None])
    drive(engine, 8)
    at_jump = plain_path(8, bowl(noise=0.2, optimizer=spec(optimizer)))
    assert bits(engine._trials.trial.snapshot) == at_jump
    while not recorder.named("rollback"):
        drive(engine, 1)
    assert bits(adapter.snapshot()) == at_jump
    lost = engine.counts.real_steps - 8
    assert script.outcomes[0].real_steps == lost >= 1
    assert not script.outcomes[0].kept
    drive(engine, 25)
    assert bits(adapter.snapshot()) == plain_path(33, bowl(noise=0.2, optimizer=spec(optimizer)))
    assert engine.statistics.steps == 33 and engine.counts.real_steps == 33 + lost
    assert engine.budget.spent_steps >= lost


def test_f82_the_same_with_real_batches():
    adapter, batches, probes = clouds(optimizer=spec("adam"))
    fed = list(itertools.islice(batches, 40))
    config = configure(probe={"tentative": False}, **UPHILL)
    script = Scripted(full(4), predict(settle=6), correct(6))
    random = np.random.default_rng(0)
    noise = Proposes(
        lambda h, z: tuple((3.0 * random.standard_normal(b.shape)).astype(np.float32) for b in h.current())
    )
    engine, recorder = build(adapter, config, script, noise, probes=probes)
    drive(engine, 40, iter(fed))
    (rollback,) = recorder.named("rollback")
    lost = rollback["step"] - rollback["to_step"]
    other, _, _ = clouds(optimizer=spec("adam"))
    for batch in fed[:8] + fed[8 + lost :]:
        other.train_step(batch)
    assert bits(adapter.snapshot()) == bits(other.snapshot())


def test_f82_the_guard_fails_a_trial_at_the_first_loss_above_it():
    adapter = bowl(optimizer=spec("sgd"))
    config = configure(probe={"tentative": False}, **UPHILL)
    script = Scripted(full(4), predict(settle=30), correct(30))
    engine, recorder = build(adapter, config, script, away(50.0), probes=[None])
    drive(engine, 9)
    assert script.outcomes[0].real_steps == 1
    assert "above the guard" in recorder.named("rollback")[0]["reason"]
    assert math.isnan(script.outcomes[0].gain)


@pytest.mark.parametrize(
    ("level", "deviation", "limit"), [(2.0, 0.01, 3.0), (2.0, 0.5, 5.0), (-2.0, 0.1, -1.0)]
)
def test_f82_the_guard_needs_both_its_noise_and_its_factor(level, deviation, limit):
    from hybridcore.config import VerdictConfig
    from hybridcore.trial import Trial

    trial = Trial(None, 0, "p", 1.0, 1, "guard", None, {}, level, deviation, 0.0, 0.0)
    assert trial.guard_limit(VerdictConfig(guard_z=6.0, guard_factor=1.5)) == pytest.approx(limit)


def test_f82_a_step_without_a_finite_loss_fails_the_trial_at_once():
    adapter, batches, probes = clouds()
    script = Scripted(full(8), predict(horizon=1.0, settle=30), correct(30))
    engine, recorder = build(adapter, configure(), script, probes=probes)
    drive(engine, 14, batches)
    assert engine._trials.trial is not None
    before = bits(engine._trials.trial.snapshot)
    adapter.write_params(tuple(np.full_like(b, np.inf) for b in adapter.read_params()))  # a very bad jump
    engine.step(next(batches))
    assert "no finite loss" in recorder.named("rollback")[0]["reason"]
    assert bits(adapter.snapshot()) == before


def test_f82_a_broken_batch_is_not_the_fault_of_the_jump():
    """Where the probe set has a sound loss, a skipped step leaves the trial open; the fourth does not."""
    adapter, batches, probes = clouds()
    script = Scripted(full(8), predict(horizon=1.0, settle=30), correct(30))
    engine, recorder = build(adapter, configure(), script, probes=probes)
    drive(engine, 14, batches)
    trial = engine._trials.trial
    x, y = next(batches)
    for skipped in range(1, 4):
        weights, counted = bits(adapter.read_params()), len(recorder.named("probe"))
        engine.step((np.full_like(x, np.nan), y))
        assert engine._trials.trial is trial and trial.skipped == engine.counts.skipped == skipped
        assert bits(adapter.read_params()) == weights
        assert len(recorder.named("probe")) == counted + 1, "the probe that told is booked"
        drive(engine, 2, batches)
    engine.step((np.full_like(x, np.nan), y))
    assert engine._trials.trial is None and len(recorder.named("rollback")) == 1


@pytest.mark.parametrize("settle", [1, 3, 10, 30])
def test_f82_the_verdict_falls_after_exactly_settle_real_steps(settle):
    adapter = bowl()
    script = Scripted(full(8), predict(horizon=5.0, settle=settle, judge="guard"), correct(50))
    engine, recorder = build(adapter, configure(), script, probes=[None])
    drive(engine, 60)
    jump, verdict = recorder.named("jump")[0], recorder.named("verdict")[0]
    assert verdict["step"] - jump["step"] == settle
    assert script.outcomes[0].real_steps == settle


def test_f82_the_verdict_compares_window_averaged_weights_at_equal_cost():
    """Gain against the losses of hand-computed window means on the noiseless quadratic."""
    adapter = bowl(condition=2.0)
    h, target, rate = adapter.curvature, adapter.optimum, 0.01
    script = Scripted(full(8), predict(horizon=30.0, settle=4), correct(4))
    engine, recorder = build(adapter, configure(probe={"tentative": False}), script, probes=[None])
    start = adapter.params["w"] - target
    loss = lambda gap: 0.5 * float(gap @ (h * gap))  # noqa: E731
    drive(engine, 16)
    gap = lambda k: (1 - rate * h) ** k * start  # noqa: E731
    mean = lambda steps: np.mean([gap(k) for k in steps], axis=0)  # noqa: E731
    older, newer = loss(mean(range(5, 9))), loss(mean(range(9, 13)))
    landed = gap(12) + 30.0 * (gap(12) - gap(11))
    after = np.mean([(1 - rate * h) ** k * landed for k in range(1, 5)], axis=0)
    # Three probes of one third of a step each: two for the curve before the jump are booked by then.
    cost = 12 + 2 / 3 + 4 - 1.5 - (12 - 1.5)
    # As a power of the steps.
    age = 12 - 1.5
    slope = tangent(older, newer, 4, age)
    bar = newer * (1 + cost / age) ** (slope * age / newer)
    (verdict,) = recorder.named("verdict")
    assert verdict["gain"] == pytest.approx(bar - loss(after), rel=1e-4)
    assert verdict["kept"]
    assert verdict["credit_steps"] == pytest.approx(min(30.0, verdict["gain"] / -slope), rel=1e-4)


def test_f82_the_slope_is_measured_anew_after_a_rollback():
    """A slope from the steep start would fail every later trial of a curve that has flattened since."""
    adapter = bowl(size=1, condition=1.0, optimizer=OptimizerSpec("sgd", 0.02))
    config = configure(probe={"tentative": False}, verdict={"guard_z": 1e6, "guard_factor": 1e6}, **UPHILL)
    backward = Proposes(lambda h, z: ((0.15 * (adapter.params["w"] - adapter.optimum)).astype(np.float32),))
    script = Scripted(full(8), predict(settle=4), correct(4), predict(settle=4), correct(4))
    engine, recorder = build(adapter, config, script, backward, probes=[None])
    drive(engine, 12)
    gap = float((adapter.params["w"] - adapter.optimum)[0]) / 1.15
    drive(engine, 8)
    assert len(recorder.named("rollback")) == 1
    reference = engine._trials.trial.reference
    # Means of four steps fall by r^8 from one window to the next; the lost steps are no part of it.
    r = 0.98
    at = lambda k: 0.5 * (np.mean([r**j for j in range(k - 3, k + 1)]) * gap) ** 2  # noqa: E731
    assert reference.losses[0] == pytest.approx(at(4), rel=1e-5)
    age = reference.age
    assert reference.slope == pytest.approx(tangent(at(0), at(4), 4, age), rel=1e-4)


def test_f82_the_slope_is_per_real_step_whatever_probes_cost():
    """A probe set as large as ten steps does not make the curve before a jump look ten times flatter."""
    adapter = bowl(size=1, condition=1.0)
    script = Scripted(
        full(8), predict(40.0, settle=4), correct(4), full(4), predict(1.0, settle=4), correct(4)
    )
    config = configure(probe={"tentative": False, "batches": 30}, **UPHILL)
    engine, recorder = build(adapter, config, script, LastUpdate(), probes=[None] * 30)
    drive(engine, 16)
    after = float((adapter.params["w"] - adapter.optimum)[0])
    drive(engine, 4)
    assert recorder.named("probe")[0]["cost"] == pytest.approx(10.0)
    slope = engine._trials.trial.reference.slope
    at = lambda k: 0.5 * (np.mean([0.99**j for j in range(k - 3, k + 1)]) * after) ** 2  # noqa: E731
    age = engine._trials.trial.reference.age
    assert slope == pytest.approx(tangent(at(0), at(4), 4, age), rel=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_f82_a_slope_is_no_steeper_than_the_losses_of_the_steps_show(noise):
    """Losses fell fast until step 8 and are level since: what is left of the slope is their noise."""
    adapter = bowl()
    engine, _ = build(adapter, configure(), Scripted(full(30)), probes=[None])
    trials, random = engine._trials, np.random.default_rng(0)
    trials._statistics.losses.extend(np.maximum(3.0, 7.0 - 0.5 * np.arange(20)))
    level = 3.0 + noise * random.standard_normal(9)
    trials._statistics.losses.extend(level)
    fit = linregress(np.arange(9), level)
    steepest = fit.slope - 2.0 * fit.stderr
    assert trials._shallower(-0.5, 4.0) == pytest.approx(max(0.0, -steepest) / 0.5, abs=1e-9)
    assert trials._shallower(-0.5, 1.5) == 1.0, "three losses say nothing"
    assert trials._shallower(0.5, 4.0) == 1.0, "a rise is no bar"
    trials._statistics.losses.extend(3.0 - 0.5 * np.arange(9))
    assert trials._shallower(-0.5, 4.0) == pytest.approx(1.0)
    assert trials._shallower(-0.25, 4.0) == 1.0, "it is never made steeper"


@pytest.mark.parametrize("seed", range(4))
def test_f84_a_curve_that_flattens_is_no_reason_to_fail_what_is_ahead_of_the_plain_loop(seed):
    """Steep directions have been learned by step 20, and a gentle one is left, where jumps pay."""
    spec = OptimizerSpec("sgd", 0.1)
    shape = {"size": 2, "condition": 100.0, "optimizer": spec}
    plain, adapter = bowl(seed, **shape), bowl(seed, **shape)
    script = Scripted(full(20), predict(10.0, settle=20), correct(20))
    config = configure(probe={"tentative": False}, **UPHILL)
    engine, recorder = build(adapter, config, script, probes=[None])
    drive(engine, 44)
    (verdict,) = recorder.named("verdict")
    for _ in range(44):
        plain.train_step(None)
    assert adapter.probe_loss(None).mean() < plain.probe_loss(None).mean()
    assert verdict["kept"]
    assert verdict["behind_steps"] == 0.0


def test_f82_credit_is_bounded_by_what_the_caps_left_of_the_horizon():
    adapter = bowl(condition=2.0)
    config = configure(groups={"max_relative_jump": 0.02}, probe={"tentative": False})
    script = Scripted(full(8), predict(horizon=30.0, settle=4), correct(4))
    engine, recorder = build(adapter, config, script, probes=[None])
    drive(engine, 16)
    (jump,), (verdict,) = recorder.named("jump"), recorder.named("verdict")
    assert jump["capped"] == ["norm"] and jump["horizon"] < 10.0
    assert verdict["kept"] and 0.0 < verdict["credit_steps"] <= jump["horizon"]


# -- what trying may cost: F83 -----------------------------------------------------------------------


@pytest.mark.parametrize("tentative", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.1])
@pytest.mark.parametrize("grace", [0.0, 10.0])
def test_f83_a_harmful_predictor_costs_at_most_its_share_plus_one_trial(tentative, share, grace):
    adapter, batches, probes = clouds()
    config = configure(
        probe={"tentative": tentative},
        budget={
            "share": share,
            "credit_share": 0.5,
            "grace_steps": grace,
            "backoff_steps": 4,
            "count_seconds": False,
        },
        **UPHILL,
    )
    random = np.random.default_rng(0)
    harmful = Proposes(
        lambda h, z: tuple(0.5 * random.standard_normal(b.shape).astype(np.float32) for b in h.current())
    )
    controller = Fixed(FixedConfig(horizon=5.0, full_steps=4, correct_steps=4))
    engine, recorder = build(adapter, config, controller, harmful, probes)
    budget = engine.budget
    probe_cost = 100 / 32 / 3
    trial = 4 * probe_cost + 4
    for _ in range(800):
        drive(engine, 1, batches)
        allowed = share * budget.total_steps + 0.5 * budget.credit_steps + grace
        assert budget.spent_steps <= allowed + trial + 1e-9
        assert budget.total_steps + budget.spent_steps == pytest.approx(
            engine.counts.real_steps + probe_cost * engine.probes.count
        )
    assert engine.counts.failed + engine.counts.refused >= 1
    probes_paid = sum(p["cost"] for p in recorder.named("probe"))
    lost = sum(p["step"] - p["to_step"] for p in recorder.named("rollback"))
    assert budget.spent_steps == pytest.approx(probes_paid + lost)
    assert engine.counts.cost == pytest.approx(engine.counts.real_steps + probes_paid)


def test_f83_the_same_bound_holds_in_seconds(monkeypatch):
    """On a clock that ticks a millisecond at each look, so that no real time is involved."""
    import time

    now = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(now) * 1e-3)
    adapter, batches, probes = clouds()
    config = configure(
        budget={"share": 0.1, "grace_steps": 5.0, "backoff_steps": 4, "count_seconds": True},
        probe={"tentative": False},
        **UPHILL,
    )
    controller = Fixed(FixedConfig(full_steps=4, correct_steps=4))
    engine, _ = build(adapter, config, controller, away(2.0), probes)
    budget = engine.budget
    for _ in range(600):
        drive(engine, 1, batches)
        per_step = budget.total_seconds / budget.total_steps
        allowed = 0.1 * budget.total_seconds + 0.5 * budget.credit_seconds + 5.0 * per_step
        assert budget.spent_seconds <= allowed + (4 + 1) * 1e-3 + 4 * per_step + 1e-9
    assert engine.counts.jumps >= 2
    assert 0.0 < budget.overhead_share < 0.3


def test_f83_pauses_double_while_jumps_fail():
    adapter = bowl()
    config = configure(budget={"backoff_steps": 10, "max_backoff_steps": 80}, **UPHILL)
    controller = Fixed(FixedConfig(full_steps=1, correct_steps=4))
    engine, recorder = build(adapter, config, controller, away(50.0), probes=[None])
    engine.history.sleep = lambda: None
    drive(engine, 400)
    steps = [p["step"] for p in recorder.named("jump-refused")]
    gaps = np.diff(steps)[:5]
    # A refusal enters a Full phase of four steps; the pause ends at a boundary at or after its length.
    for gap, pause in zip(gaps, [10, 20, 40, 80, 80], strict=True):
        assert pause <= gap <= pause + 1


def test_f83_verified_credit_ends_the_pause_and_extends_the_budget():
    adapter = bowl(condition=2.0)
    config = configure(budget={"share": 0.0, "grace_steps": 12.0, "credit_share": 0.5, "backoff_steps": 10})
    controller = Fixed(FixedConfig(horizon=20.0, full_steps=8, correct_steps=4))
    engine, recorder = build(adapter, config, controller, LastUpdate(), probes=[None])
    drive(engine, 300)
    assert engine.budget.credit_steps > 24.0
    assert engine.budget.failures == 0
    assert len(recorder.named("jump")) > 4
    assert engine.budget.credit_steps == pytest.approx(
        sum(v["credit_steps"] for v in recorder.named("verdict"))
    )


# -- the user's own settings are the floor: F84 ------------------------------------------------------


@pytest.mark.parametrize("mode", ["jump", "step"])
@pytest.mark.parametrize("predictor", [LastUpdate(), Drift(), away(1.0)], ids=lambda p: p.name)
def test_f84_the_learning_rate_is_that_of_the_schedule_throughout(mode, predictor):
    optimizer = spec("adam")
    adapter, batches, probes = clouds(optimizer=optimizer)
    config = configure(phases={"predict_mode": mode, "predict_steps": 2})
    controller = Fixed(FixedConfig(horizon=4.0, full_steps=8, correct_steps=4))
    engine, recorder = build(adapter, config, controller, predictor, probes)
    drive(engine, 150, batches)
    assert recorder.named("jump")
    clock = 0
    expected = []
    for event, payload in recorder.events:
        if event == "real-step":
            expected.append(scheduled_rate(optimizer, clock))
            assert payload["learning_rate"] == expected[-1]
            clock += 1
        elif event == "rollback":
            clock -= payload["step"] - payload["to_step"]
    assert adapter.rates == expected
    assert adapter.optimizer is optimizer


def test_f84_every_real_step_is_the_users_own_update():
    """Each real step moves the weights exactly as plain SGD at the user's rate moves them."""
    adapter = bowl()
    controller = Fixed(FixedConfig(horizon=10.0, full_steps=5, correct_steps=4))
    engine, _ = build(adapter, configure(), controller)
    inner, steps = adapter.train_step, []

    def watched(batch):
        before = adapter.params["w"].copy()
        result = inner(batch)
        steps.append((before, adapter.params["w"].copy()))
        return result

    adapter.train_step = watched
    drive(engine, 120)
    assert engine.counts.jumps > 3
    for before, after in steps:
        np.testing.assert_allclose(
            after - before, -0.01 * adapter.curvature * (before - adapter.optimum), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("judge", ["probe", "guard"])
def test_a_repetition_that_no_step_follows_is_taken_back_at_the_end(judge):
    adapter = bowl()
    script = Scripted(full(8), attrs.evolve(predict(settle=4), judge=judge, continuous=True), correct(4))
    engine, recorder = build(adapter, configure(probe={"tentative": False}), script, probes=[None])
    while not recorder.named("jump"):
        before = bits(adapter.snapshot())
        drive(engine, 1)
        after = bits(adapter.snapshot())
    moved = engine.counts.predicted_steps
    start = bits(engine._trials.trial.snapshot)
    assert after != before and after != start and moved > 0.0
    summary = engine.finish()
    assert bits(adapter.snapshot()) == start
    assert summary["jumps"] == summary["predicted_steps"] == summary["verdicts_failed"] == 0
    assert "before the jump can be judged" in recorder.named("rollback")[-1]["reason"]
