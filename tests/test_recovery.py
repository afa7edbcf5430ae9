"""The eight actions, executed on a real engine and a real model (F37-F43)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from engine_lab import Proposes, Scripted, bits, bowl, build, clouds, configure, correct, drive, full, predict
from test_divergence import Scripted as ScriptedMonitor

from hybridcore.config import RecoveryConfig
from hybridcore.errors import DivergenceError, RecoveryAction
from hybridcore.monitors.loss_deviation import LossDeviation
from hybridcore.monitors.non_finite import NonFinite
from hybridcore.policy import DEFAULT_POLICY, Policy
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.protocols import OptimizerSpec, Signal, SignalLevel, StepResult
from hybridcore.restraint import Restraint

ADAM = OptimizerSpec("adam", 0.01)


def answers(level, *actions):
    return {"scripted": {level: tuple(actions)}}


def troubled(script, policy, *, adapter=None, controller=None, every=1, **more):
    """Engine on a bowl whose only monitor follows a script of levels."""
    recovery = {"policy": policy, **more.pop("recovery", {})}
    config = configure(recovery=recovery, divergence={"check_every": every}, **more.pop("tables", {}))
    return build(
        adapter if adapter is not None else bowl(noise=0.3, optimizer=ADAM),
        config,
        controller or Scripted(),
        more.pop("predictor", None),
        probes=[None],
        monitors=[ScriptedMonitor(script)],
        **more,
    )


def at(step, letter):
    return "-" * (step - 1) + letter


def actions(recorder):
    return [(e["step"], e["action"]) for e in recorder.named("recovery")]


def test_every_action_is_in_the_default_policy_but_abort_which_follows_failed_rollbacks():
    named = {a for ladders in DEFAULT_POLICY.values() for ladder in ladders.values() for a in ladder}
    assert named == set(RecoveryAction) - {RecoveryAction.ABORT}


def test_continue_changes_nothing():
    plain = bowl(noise=0.3, optimizer=ADAM)
    for _ in range(40):
        plain.train_step(None)
    engine, recorder = troubled(at(20, "W"), answers("warning", "continue"))
    drive(engine, 40)
    assert bits(engine.adapter.snapshot()) == bits(plain.snapshot())
    assert actions(recorder) == [(20, "continue")]
    assert recorder.named("signal")[0]["level"] == "warning"


def test_f37_the_next_horizon_shrinks_by_the_ratio_and_recovers():
    script = Scripted(full(8), *[predict(horizon=8.0, settle=4), correct(4)] * 12)
    engine, recorder = troubled(
        at(20, "W"),
        answers("warning", "reduce-predict-ratio"),
        controller=script,
        recovery={"predict_ratio": 0.25, "relax_steps": 10},
        tables={"groups": {"max_relative_jump": 1e9}},
        adapter=bowl(),
        predictor=LastUpdate(),
    )
    drive(engine, 60)
    jumps = recorder.named("jump")
    before = [j["horizon"] for j in jumps if j["step"] < 20]
    assert before == [8.0] * len(before) and before
    for jump in (j for j in jumps if j["step"] >= 20):
        ratio = 1.0 - 0.75 * math.exp(-(jump["step"] - 20) / 10)
        assert jump["horizon"] == pytest.approx(8.0 * ratio)
    assert jumps[len(before)]["horizon"] == pytest.approx(2.0), "the first one, at the very step"
    assert jumps[-1]["horizon"] > 7.5


@pytest.mark.parametrize("count", [1, 7])
def test_f38_the_forced_full_block_is_exact(count):
    cycle = [predict(settle=3), correct(3)] * 40
    engine, _ = troubled(
        at(20, "W"),
        answers("warning", "force-full-phase"),
        controller=Scripted(full(4), *cycle),
        recovery={"full_steps": count},
        adapter=bowl(),
    )
    phases, _ = drive(engine, 40)
    block = phases[20 : 20 + count]
    assert block == ["full"] * count
    assert phases[20 + count] != "full" and phases[19] != "full"


def test_f39_the_threshold_is_raised_then_decays():
    """Predictions with confidence 0.3 are refused while 0.5 exp(-t / 20) is above it, t < 10.2."""
    change = Proposes(lambda h, z: tuple(np.zeros_like(b) for b in h.current()), confidence=0.3)
    engine, recorder = troubled(
        at(12, "W"),
        answers("warning", "raise-confidence-threshold"),
        controller=Scripted(
            full(4), *[predict(settle=2), correct(2)] * 3, *[full(1), predict(settle=1)] * 40
        ),
        predictor=change,
        recovery={"raise_threshold": 0.5, "relax_steps": 20},
        adapter=bowl(),
        tables={"phases": {"full_steps": 1}},
    )
    drive(engine, 40)
    refused = [e["step"] for e in recorder.named("jump-refused") if "raised" in e["reason"]]
    assert refused and min(refused) >= 12 and max(refused) <= 22
    kept = [e["step"] for e in recorder.named("jump")]
    assert any(s < 12 for s in kept) and any(s > 22 for s in kept) and not any(12 <= s <= 22 for s in kept)


def test_f39_the_threshold_controller_asks_for_more_too():
    from hybridcore.controllers.threshold import Threshold

    script = at(9, "W")
    engine, _ = troubled(script, answers("warning", "raise-confidence-threshold"), controller=Threshold())
    states = []
    choose = engine.controller.choose
    engine.controller.choose = lambda state: states.append(state.raised_threshold) or choose(state)
    drive(engine, 60)
    assert states[0] == 0.0 and 0.0 < max(states) <= 0.2


def state_of(adapter):
    return bits(adapter.snapshot()[:-1])


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_f40_a_rollback_restores_bit_for_bit_and_scales_the_rate(optimizer):
    adapter = bowl(noise=0.3, optimizer=OptimizerSpec(optimizer, 0.01))
    engine, recorder = troubled(
        at(37, "C"),
        answers("critical", "roll-back-and-retry"),
        adapter=adapter,
        recovery={"snapshot_every": 10, "prove_after": 5, "learning_rate_factor": 0.25},
    )
    past = {0: state_of(adapter)}
    for step in range(1, 37):
        drive(engine, 1)
        past[step] = state_of(adapter)
    assert adapter.learning_rate == 0.01
    drive(engine, 1)
    to = recorder.named("rollback")[0]["to_step"]
    assert 20 <= to <= 32, "the latest state that was proven good by then"
    assert state_of(adapter) == past[to]
    assert adapter.learning_rate == 0.0025
    assert engine.rates.applied == 0.25
    assert engine.counts.rollbacks == engine.recovery.watch.divergences == 1


def test_f40_only_states_that_later_steps_have_proven_are_gone_back_to():
    engine, recorder = troubled(
        at(23, "W") + "------C",
        answers("critical", "roll-back-and-retry"),
        recovery={"snapshot_every": 10, "prove_after": 8},
    )
    drive(engine, 30)
    # The state of step 20 was followed by a warning at 23.
    assert recorder.named("rollback")[0]["to_step"] < 20


def test_f40_after_good_steps_the_rate_comes_back():
    engine, _ = troubled(
        at(20, "C"),
        answers("critical", "roll-back-and-retry"),
        recovery={"snapshot_every": 5, "prove_after": 2, "forget_after": 30},
    )
    rates = [engine.adapter.learning_rate for _ in range(70) if drive(engine, 1)]
    assert rates[18] == 0.01 and rates[19] == rates[40] == 0.005 and rates[-1] == 0.01


def test_f40_a_schedule_goes_on_from_the_scaled_rate():
    spec = OptimizerSpec("sgd", 0.01, schedule="linear", total_steps=100)
    engine, recorder = troubled(
        at(50, "C"),
        answers("critical", "roll-back-and-retry"),
        adapter=bowl(optimizer=spec),
        recovery={"snapshot_every": 10, "prove_after": 5},
    )
    drive(engine, 60)
    done = recorder.named("rollback")[0]["to_step"] + 10
    assert engine.adapter.learning_rate == pytest.approx(0.5 * 0.01 * (1 - (done - 1) / 100))


def test_f40_without_the_capability_the_state_still_goes_back():
    adapter = bowl(noise=0.3)
    adapter.capabilities = frozenset()
    engine, recorder = troubled(
        at(20, "C"),
        answers("critical", "roll-back-and-retry"),
        adapter=adapter,
        recovery={"snapshot_every": 5},
    )
    drive(engine, 25)
    assert recorder.named("rollback") and adapter.learning_rate == 0.01


def test_f40_an_open_trial_is_undone_before_anything_older_is():
    engine, recorder = troubled(
        at(12, "C"),
        answers("critical", "roll-back-and-retry"),
        controller=Scripted(full(6), predict(settle=20), correct(20)),
        adapter=bowl(),
    )
    drive(engine, 10)
    assert engine._trials.trial is not None
    before = bits(engine._trials.trial.snapshot)
    drive(engine, 2)
    assert bits(engine.adapter.snapshot()) == before
    assert len(recorder.named("rollback")) == 1 and engine.adapter.learning_rate == 0.01


def test_f40_good_states_are_kept_between_trials_that_follow_each_other():
    """A trial is open at nearly every check, and the proven state still is never much older than agreed."""
    trial = [predict(horizon=1.0, settle=9, judge="guard"), correct(9)]
    engine, _ = troubled(
        "",
        {},
        controller=Scripted(full(4), *(30 * trial)),
        adapter=bowl(),
        every=10,
        recovery={"snapshot_every": 30, "prove_after": 20},
        tables={"phases": {"max_consecutive_predicts": 100}},
    )
    ages = []
    for step in range(1, 270):
        drive(engine, 1)
        ages.append(step - engine.recovery.states.proven.step)
    assert engine.counts.jumps > 25
    # Taken every 30 steps or up to a trial later, proven by the first check 20 steps after that.
    assert max(ages) <= 2 * (30 + 9) + 20 + 10


def test_f40_a_state_of_an_undone_past_is_no_candidate():
    engine, _ = troubled("", {}, recovery={"snapshot_every": 5, "prove_after": 50})
    drive(engine, 12)
    states = engine.recovery.states
    taken = states.candidate.step
    engine.recovery.trial_failed(taken)
    assert states.candidate is not None
    engine.recovery.trial_failed(taken - 1)
    assert states.candidate is None


def test_f83_steps_that_a_rollback_loses_are_charged():
    engine, recorder = troubled(
        at(40, "C"),
        answers("critical", "roll-back-and-retry"),
        recovery={"snapshot_every": 10, "prove_after": 5},
    )
    drive(engine, 40)
    lost = 40 - recorder.named("rollback")[0]["to_step"]
    assert lost > 0
    assert engine.budget.spent_steps == lost
    assert engine.budget.total_steps == 40 - lost


def test_f40_a_trial_that_is_undone_after_the_rate_changed_keeps_the_new_rate():
    engine, _ = troubled(
        "", {}, controller=Scripted(full(6), predict(settle=20), correct(20)), adapter=bowl()
    )
    drive(engine, 12)
    engine.rates.set("recovery", 0.5)
    engine._judge.fail("test")
    assert engine.adapter.learning_rate == 0.005


def test_f41_a_batch_that_the_adapter_skipped_leaves_the_weights_alone():
    adapter, batches, _ = clouds()
    engine, recorder = build(adapter, configure(), Scripted(), monitors=[NonFinite()])
    drive(engine, 20, batches)
    x, y = next(batches)
    before = bits(adapter.snapshot())
    engine.step((x * np.nan, y))
    assert bits(adapter.snapshot()) == before
    assert actions(recorder) == [(21, "skip-batch")]


def test_f41_where_a_loop_made_the_update_the_batch_is_undone():
    adapter, batches, probes = clouds()
    engine, recorder = build(
        adapter,
        configure(recovery={"snapshot_every": 5, "prove_after": 2}),
        Scripted(),
        probes=probes,
        monitors=[NonFinite()],
    )
    drive(engine, 20, batches)
    good = engine.recovery.states.proven
    engine.before_step()
    adapter.params["weight"][...] = np.nan
    engine.after_step(StepResult(math.nan, math.nan))
    assert np.isfinite(adapter.params["weight"]).all()
    assert bits(adapter.snapshot()) == bits(good.snapshot)
    assert adapter.learning_rate == 0.05 and actions(recorder) == [(21, "skip-batch")]


def test_an_overflow_of_a_gradient_scaler_is_no_sign_of_trouble():
    engine, recorder = build(bowl(), configure(), Scripted(), probes=[None], monitors=[NonFinite()])
    drive(engine, 5)
    engine.before_step()
    engine.after_step(StepResult(1.0, math.inf, skipped=True, overflow=True))
    assert not recorder.named("signal") and engine.counts.skipped == 1


class Learned(Proposes):
    """Predictor with state that `reset` draws anew."""

    def reset(self, layout, rng):
        super().reset(layout, rng)
        self.parameters = rng.standard_normal(4)
        self.resets = getattr(self, "resets", -1) + 1


def test_f42_the_predictor_is_initialised_again():
    predictor = Learned(lambda h, z: tuple(np.zeros_like(b) for b in h.current()))
    engine, _ = troubled(at(9, "W"), answers("warning", "reset-predictor"), predictor=predictor)
    drive(engine, 8)
    before = predictor.parameters.copy()
    assert predictor.resets == 0
    drive(engine, 1)
    assert predictor.resets == 1 and not np.array_equal(before, predictor.parameters)


def test_f42_a_proposal_that_is_not_finite_resets_its_predictor_only():
    bad = Learned(lambda h, z: tuple(np.full_like(b, np.nan) for b in h.current()))
    good = Learned(lambda h, z: tuple(np.zeros_like(b) for b in h.current()))
    script = Scripted(full(4), predict(predictor="bad"), full(4), predict(predictor="good"))
    engine, recorder = troubled(
        "", {}, predictor={"bad": bad, "good": good}, controller=script, adapter=bowl()
    )
    before = bits(engine.adapter.read_params())
    drive(engine, 8)
    assert before != bits(engine.adapter.read_params())
    assert (bad.resets, good.resets) == (1, 0)
    assert recorder.named("recovery")[0]["action"] == "reset-predictor"
    assert "not finite" in recorder.named("jump-refused")[0]["reason"]


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_f43_failed_rollbacks_end_in_an_error_with_the_last_good_state_in_place(allowed):
    engine, recorder = troubled(
        at(20, "C" * 10),
        answers("critical", "roll-back-and-retry"),
        recovery={"max_rollbacks": allowed, "snapshot_every": 5, "prove_after": 2},
    )
    drive(engine, 19)
    good = engine.recovery.states.proven
    drive(engine, allowed)
    with pytest.raises(DivergenceError, match="scripted critical: 2 beyond 1") as caught:
        drive(engine, 1)
    assert bits(engine.adapter.snapshot()[0]) == bits(good.snapshot[0])
    assert caught.value.where == f"step {20 + allowed}"
    assert caught.value.action is RecoveryAction.ABORT
    assert f"of step {good.step}" in caught.value.fix
    assert actions(recorder)[-1] == (20 + allowed, "abort")
    assert len(recorder.named("rollback")) == allowed + 1


def test_f43_rollbacks_that_helped_do_not_count():
    one = "C" + "-" * 29
    engine, recorder = troubled(
        at(20, one * 4),
        answers("critical", "roll-back-and-retry"),
        recovery={"max_rollbacks": 1, "snapshot_every": 5, "prove_after": 2, "forget_after": 20},
    )
    drive(engine, 130)
    assert len(recorder.named("rollback")) == 4


def test_f43_without_snapshots_a_rollback_is_an_abort():
    engine, _ = troubled(
        at(20, "C"), answers("critical", "roll-back-and-retry"), recovery={"snapshot_every": 0}
    )
    with pytest.raises(DivergenceError, match="diverged") as caught:
        drive(engine, 30)
    assert "as it was left" in caught.value.fix


def test_f43_the_last_steps_of_a_run_are_checked_too():
    engine, recorder = troubled("-C", answers("critical", "roll-back-and-retry"), every=10)
    drive(engine, 15)
    assert not recorder.named("rollback")
    engine.finish()
    assert recorder.named("rollback")


def test_a_broken_weight_that_no_loss_shows_is_found_when_a_state_is_kept():
    adapter, batches, probes = clouds()
    engine, recorder = build(
        adapter, configure(recovery={"snapshot_every": 10, "prove_after": 5}), Scripted(), probes=probes
    )
    drive(engine, 30, batches)
    inner = adapter.model.gradient
    adapter.model.gradient = lambda params, batch: inner(
        {k: np.nan_to_num(v) for k, v in params.items()}, batch
    )
    adapter.model.losses = lambda params, batch: np.ones(32)
    adapter.params["weight"][0, 0] = np.nan
    drive(engine, 30, batches)
    assert np.isfinite(adapter.params["weight"]).all()
    assert recorder.named("rollback")


def test_the_policy_answers_repeated_signals_more_firmly_and_forgets():
    policy = Policy(RecoveryConfig(policy={"one": {"warning": ("continue", "abort")}}, forget_after=10))
    signal = Signal(SignalLevel.WARNING, "one", 2.0, 1.0)
    assert [policy.action(signal, s).value for s in (1, 2, 12, 23)] == [
        "continue",
        "abort",
        "abort",
        "continue",
    ]
    other = Signal(SignalLevel.WARNING, "two", 2.0, 1.0)
    assert policy.action(other, 24) is RecoveryAction.REDUCE_RATIO
    heir = Policy(RecoveryConfig(policy={"one": {"warning": ("continue", "abort")}}, forget_after=10))
    heir.load_state_dict(policy.state_dict())
    assert heir.action(signal, 25) is policy.action(signal, 25) is RecoveryAction.ABORT


def test_restraint_returns_exponentially_and_adds_up():
    restraint = Restraint(RecoveryConfig(predict_ratio=0.5, raise_threshold=0.4, relax_steps=50))
    assert restraint.ratio(7) == 1.0 and restraint.threshold(7) == 0.0
    restraint.reduce(10)
    restraint.demand(10)
    assert restraint.ratio(60) == pytest.approx(1 - 0.5 / math.e)
    assert restraint.threshold(60) == pytest.approx(0.4 / math.e)
    restraint.reduce(60)
    assert restraint.ratio(60) == pytest.approx(0.5 * (1 - 0.5 / math.e))
    for _ in range(9):
        restraint.demand(60)
    assert restraint.threshold(60) == 0.99


def test_recovery_goes_on_from_its_state():
    policy = answers("warning", "reduce-predict-ratio", "reset-predictor")
    engines = [troubled(at(9, "WW"), policy, adapter=bowl())[0] for _ in range(2)]
    drive(engines[0], 12)
    engines[1].recovery.load_state_dict(engines[0].recovery.state_dict())
    assert engines[1].recovery.state_dict() == engines[0].recovery.state_dict()
    assert engines[1].recovery.restraint.ratio(20) == engines[0].recovery.restraint.ratio(20) < 1.0
    first, second = (e.recovery._seeds.spawn(1)[0].generate_state(2).tolist() for e in engines)
    assert first == second


def test_a_clean_run_is_the_same_with_and_without_monitors():
    ends = []
    for monitors in (None, []):
        adapter, batches, probes = clouds(seed=3)
        engine, recorder = build(adapter, configure(), probes=probes, monitors=monitors)
        drive(engine, 300, batches)
        ends.append(bits(adapter.snapshot()))
        assert not recorder.named("recovery")
    assert ends[0] == ends[1]


def fed(engine, recorder, losses, restart):
    """Let an engine see these losses; whenever it goes back, `restart` says which loss comes next."""
    index = 0
    while index < len(losses):
        gone_back = len(recorder.named("rollback"))
        engine.before_step()
        engine.adapter.train_step(None)
        engine.after_step(StepResult(float(losses[index]), 1.0 + 1e-3 * engine.real_steps))
        index = index + 1 if len(recorder.named("rollback")) == gone_back else restart(index)
        assert engine.real_steps < 2000, "it goes back for ever"


def watched(**recovery):
    config = configure(recovery={"snapshot_every": 20, "prove_after": 10, **recovery})
    return build(bowl(), config, Scripted(), monitors=[LossDeviation()])


SUDDEN = np.concatenate([np.ones(100), 1.0 + np.sin(np.pi * np.arange(30) / 30), np.ones(100)])
"""A spike that comes down by itself and that nothing announces."""


def test_a_spike_that_comes_again_after_going_back_is_the_runs_own_and_may_pass():
    engine, recorder = watched()
    fed(engine, recorder, np.concatenate([SUDDEN, SUDDEN, SUDDEN]), lambda index: 80)
    first, *others = actions(recorder)
    assert first[1] == "skip-batch", "a batch may have been to blame"
    assert {action for _, action in others} == {"force-full-phase"}
    assert "no batch is to blame" in recorder.named("recovery")[1]["reason"]
    assert len(recorder.named("rollback")) == 1 and engine.adapter.learning_rate == 0.01
    assert all(step < 240 for step, _ in others), "the spikes that follow are like the first"


def test_a_rise_that_comes_again_and_stays_is_answered_firmly():
    engine, recorder = watched(full_steps=20)
    loss = np.concatenate([np.ones(100), np.linspace(1.5, 6.0, 80)])
    fed(engine, recorder, loss, lambda index: 80 if len(recorder.named("rollback")) == 1 else 10**6)
    names = [action for _, action in actions(recorder)]
    assert names[0] == "skip-batch" and names[-1] == "roll-back-and-retry"
    assert set(names[1:-1]) == {"force-full-phase"}
    waited = actions(recorder)[-1][0] - actions(recorder)[1][0]
    assert 20 <= waited <= 30, "as long as it was given to pass"


def test_a_batch_that_is_blamed_once_is_not_there_again():
    """Another score after going back is another batch's: the learning rate comes down, as before."""
    engine, recorder = watched()
    losses = np.concatenate([SUDDEN[:140], SUDDEN[90:140] ** 1.5, np.ones(60)])
    fed(engine, recorder, losses, lambda index: 140 if index < 140 else 190)
    assert [action for _, action in actions(recorder)][:2] == ["skip-batch", "roll-back-and-retry"]


def test_recovery_remembers_what_it_blamed():
    engine, recorder = watched()
    fed(engine, recorder, SUDDEN[:125], lambda index: 10**6)
    heir, _ = watched()
    heir.recovery.load_state_dict(engine.recovery.state_dict())
    assert engine.recovery._blamed is not None
    assert heir.recovery.state_dict()["blamed"] == engine.recovery.state_dict()["blamed"]
