from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from itertools import groupby, pairwise

import numpy as np
import pytest
from engine_lab import (
    Proposes,
    Scripted,
    bowl,
    build,
    clouds,
    configure,
    correct,
    drive,
    full,
    predict,
)

from hybridcore.config import HybridConfig
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.controllers.threshold import Threshold, ThresholdConfig
from hybridcore.engine import Engine
from hybridcore.errors import (
    DeltaError,
    PhaseTransitionError,
    PluginError,
    PluginFailedError,
    PredictionError,
)
from hybridcore.predictors.drift import Drift
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.protocols import OptimizerSpec, Phase


def spans(phases):
    """Run lengths: ``[("warmup", 4), ("full", 4), ...]``."""
    return [(name, len(list(run))) for name, run in groupby(phases)]


def starts(recorder):
    return [(p["phase"], p["length"]) for p in recorder.named("phase-start")]


class Eager(Scripted):
    """Asks for Predict whenever it is asked."""

    def choose(self, state):
        return correct(1) if state.phase is Phase.PREDICT else predict(settle=1000, judge="guard")


STEP_MODE = {"predict_mode": "step", "predict_steps": 3}


# -- phases: F1, F3-F6, F8 ---------------------------------------------------------------------------


def test_f1_exact_phase_sequence_in_step_mode():
    """Warm-up 3, mandatory Full 5 (two asked), Predict 3, Correct 2, Predict 3, Full 4, Full 1 ..."""
    script = Scripted(full(2), predict(settle=50), correct(2), predict(), full(4))
    config = configure(phases={"warmup_steps": 3, "full_steps": 5, **STEP_MODE})
    engine, recorder = build(bowl(), config, script)
    phases, results = drive(engine, 22)
    assert spans(phases) == [
        ("warmup", 3),
        ("full", 5),
        ("predict", 3),
        ("correct", 2),
        ("predict", 3),
        ("full", 6),
    ]
    assert starts(recorder)[:6] == [
        ("full", 5),
        ("predict", 3),
        ("correct", 2),
        ("predict", 3),
        ("full", 4),
        ("full", 1),
    ]
    assert [r.backward_passes for r in results] == [int(p != "predict") for p in phases]


def test_f1_exact_phase_sequence_in_jump_mode():
    script = Scripted(full(4), predict(settle=3), correct(3), predict(settle=2), correct(2), full(7))
    engine, recorder = build(bowl(), configure(), script)
    phases, _ = drive(engine, 21)
    assert spans(phases) == [("warmup", 4), ("full", 4), ("correct", 5), ("full", 8)]
    assert starts(recorder)[:6] == [
        ("full", 4),
        ("predict", 0),
        ("correct", 3),
        ("predict", 0),
        ("correct", 2),
        ("full", 7),
    ]


def test_f1_every_phase_start_follows_the_end_of_the_one_before():
    engine, recorder = build(bowl(), configure(), Fixed(FixedConfig(full_steps=5, correct_steps=3)))
    drive(engine, 20)
    engine.force_full(3)
    drive(engine, 20)
    last = "warmup"
    for event, payload in recorder.events:
        if event == "phase-end":
            assert payload["phase"] == last
            last = None
        elif event == "phase-start":
            assert last is None
            last = payload["phase"]
    assert last is not None


def test_f1_without_warmup_the_first_batch_is_a_full_one():
    engine, _ = build(bowl(), configure(phases={"warmup_steps": 0}), Scripted())
    assert spans(drive(engine, 6)[0]) == [("full", 6)]


def test_f2_a_controller_that_breaks_the_rules_is_told_so():
    demanding = configure(plugins={"on_error": "raise"})
    engine, _ = build(bowl(), demanding, Scripted(full(4), predict(), predict()))
    with pytest.raises(PluginFailedError, match=r"'predict' may not follow phase 'predict'") as caught:
        drive(engine, 20)
    assert isinstance(caught.value.__cause__, PhaseTransitionError)


def test_f3_after_k_warm_up_steps_a_predictor_has_heard_k_steps():
    predictor = Proposes(lambda history, horizon: history.current())
    engine, _ = build(bowl(), configure(phases={"warmup_steps": 9}), Scripted(), predictor)
    drive(engine, 9)
    assert [r.step for r in predictor.records] == list(range(1, 10))
    assert all(r.phase is Phase.WARMUP and math.isfinite(r.loss) for r in predictor.records)


@pytest.mark.parametrize(("warmup", "mandatory"), [(0, 1), (3, 5), (7, 2)])
def test_f4_the_first_predict_comes_after_warmup_and_full(warmup, mandatory):
    config = configure(phases={"warmup_steps": warmup, "full_steps": mandatory})
    engine, recorder = build(bowl(), config, Eager(), probes=[None])
    drive(engine, warmup + mandatory + 3)
    assert recorder.named("jump")[0]["step"] == warmup + mandatory


@pytest.mark.parametrize("cap", [1, 5])
def test_f6_the_request_after_the_cap_yields_full(cap):
    config = configure(phases={"max_consecutive_predicts": cap, "full_steps": 2})
    engine, recorder = build(bowl(), config, Eager())
    drive(engine, 4 + 4 * (cap + 2))
    names = [name for name, _ in starts(recorder)]
    cycle = ["predict", "correct"] * cap + ["full"]
    assert names[: 1 + 2 * len(cycle)] == ["full", *cycle, *cycle]
    rule = [p["reason"] for p in recorder.named("phase-start") if p["phase"] == "full"][1]
    assert rule == f"{cap} Predict phases in a row are the cap"


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("after", [5, 7, 8, 9, 13])
def test_f8_force_full_makes_exactly_n_batches_full(after, steps):
    config = configure(phases={"warmup_steps": 3, "full_steps": 2, **STEP_MODE})
    engine, _ = build(bowl(), config, Eager())
    drive(engine, after)
    engine.force_full(steps)
    phases, _ = drive(engine, steps + 1)
    assert phases == ["full"] * steps + ["predict"]


def test_f8_force_full_during_warmup_leaves_the_mandatory_block_owed():
    engine, _ = build(bowl(), configure(phases={"warmup_steps": 5, "full_steps": 4, **STEP_MODE}), Eager())
    drive(engine, 2)
    engine.force_full(1)
    phases, _ = drive(engine, 9)
    assert phases.index("predict") >= 4 and set(phases[:4]) == {"full"}


def test_f8_force_full_lands_what_was_applied_of_a_change():
    adapter = bowl()
    config = configure(phases={"predict_mode": "step", "predict_steps": 4})
    engine, recorder = build(adapter, config, Scripted(full(4), predict(horizon=8.0, settle=50)))
    drive(engine, 10)
    assert recorder.named("jump") == []
    engine.force_full(2)
    (jump,) = recorder.named("jump")
    assert jump["horizon"] == pytest.approx(4.0)
    assert "2 of 4 shares" in jump["reason"]
    assert not engine.history.has_update and engine.needs_backward


def test_f8_force_full_before_the_first_share_closes_the_trial():
    engine, recorder = build(bowl(), configure(phases=STEP_MODE), Scripted(full(4), predict()))
    drive(engine, 8)
    assert not engine.needs_backward
    engine.force_full(1)
    assert engine._trials.trial is None
    drive(engine, 20)
    assert recorder.named("verdict") == [] and recorder.named("jump") == []


def test_a_run_that_ends_inside_a_predict_phase_judges_what_was_applied():
    engine, recorder = build(bowl(), configure(phases=STEP_MODE), Scripted(full(4), predict()))
    drive(engine, 9)
    summary = engine.finish()
    assert len(recorder.named("jump")) == len(recorder.named("verdict")) == 1
    assert summary["jumps"] == 1 and engine._trials.trial is None


# -- the confidence gate: F5 -------------------------------------------------------------------------


def test_f5_the_gate_opens_at_the_boundary_only_with_enough_confidence():
    for threshold, opens in ((0.5, True), (1.0, False)):
        controller = Threshold(ThresholdConfig(confidence_threshold=threshold, full_steps=4))
        adapter = bowl(noise=0.02, condition=2.0)
        engine, recorder = build(adapter, configure(), controller)
        drive(engine, 60)
        assert bool(recorder.named("jump")) == opens
        reasons = [p["reason"] for p in recorder.named("phase-start")]
        assert any(r.startswith("confidence ") and "below" in r for r in reasons)


@pytest.mark.parametrize("yes", [0, 1, 2])
def test_f5_the_gate_is_asked_before_each_further_predicted_step(yes):
    adapter = bowl()
    script = Scripted(full(4), predict(horizon=10.0, settle=20), proceed=[True] * yes + [False])
    config = configure(phases={"predict_mode": "step", "predict_steps": 5})
    engine, recorder = build(adapter, config, script)
    drive(engine, 8)
    before = adapter.params["w"].copy()
    update = engine.history.last_update()[0].astype(float)
    phases, _ = drive(engine, yes + 2)
    assert phases == ["predict"] * (yes + 1) + ["full"]
    (jump,) = recorder.named("jump")
    assert jump["horizon"] == pytest.approx(10.0 * (yes + 1) / 5)
    assert jump["reason"].startswith(f"early exit after {yes + 1} of 5 predicted steps")
    moved = np.linalg.norm(10.0 * update * (yes + 1) / 5)
    snapshot = engine._trials.trial.snapshot[0]["w"]
    np.testing.assert_array_equal(snapshot, before)
    landed = np.linalg.norm(adapter.params["w"] - before)
    one_step = 0.01 * np.linalg.norm(adapter.curvature * (before - adapter.optimum))
    assert abs(landed - moved) <= 1.01 * one_step


def test_f5_a_predictor_that_doubts_itself_is_stopped_by_the_threshold_gate():
    controller = Threshold(ThresholdConfig(confidence_threshold=0.5, full_steps=4, min_horizon=1))
    doubtful = Proposes(lambda history, horizon: tuple(0.0 * b for b in history.current()), confidence=0.3)
    config = configure(phases={"predict_mode": "step", "predict_steps": 5})
    engine, recorder = build(bowl(condition=2.0), config, controller, doubtful)
    drive(engine, 40)
    assert "early exit after 1 of 5 predicted steps: confidence 0.300" in {
        p["reason"] for p in recorder.named("jump")
    }


def test_f5_a_measured_loss_over_the_guard_ends_the_phase():
    adapter = bowl()
    away = Proposes(lambda history, horizon: (100.0 * np.ones(20, np.float32),))
    config = configure(
        phases={"predict_mode": "step", "predict_steps": 5, "forward_every": 1},
        groups={"max_relative_jump": 10.0},
    )
    engine, recorder = build(adapter, config, Scripted(full(4), predict(settle=5)), away)
    drive(engine, 9)
    (jump,) = recorder.named("jump")
    assert "early exit after 1 of 5" in jump["reason"] and "guard" in jump["reason"]


# -- predicted changes: F19-F23, F60, F74 ------------------------------------------------------------


def test_f19_an_object_of_your_own_is_accepted_and_called():
    mine = Proposes(lambda history, horizon: tuple(-0.01 * b for b in history.current()))
    adapter = bowl()
    engine, recorder = build(adapter, configure(), Scripted(full(4), predict(settle=2)), mine)
    drive(engine, 8)
    assert mine.calls == 1
    assert recorder.named("jump")[0]["predictor"] == "proposes"
    before = engine._trials.trial.snapshot[0]["w"]
    np.testing.assert_allclose(adapter.params["w"], 0.99 * before, rtol=1e-6)


@pytest.mark.parametrize("predictor", [LastUpdate(), Drift()], ids=lambda p: p.name)
def test_f20_deltas_are_named_and_shaped_as_the_model_and_point_where_training_goes(predictor):
    adapter, batches, _ = clouds(optimizer=OptimizerSpec("sgd", 0.02))
    engine, _ = build(adapter, configure(), Scripted(), predictor)
    drive(engine, 24, batches)
    prediction = predictor.predict(engine.history, 20.0, adapter.xp)
    named = adapter.layout.unpack(prediction.deltas, adapter.xp)
    assert {n: v.shape for n, v in named.items()} == {n: v.shape for n, v in adapter.params.items()}
    before = {n: v.copy() for n, v in adapter.params.items()}
    drive(engine, 20, batches)
    true = np.concatenate([(adapter.params[n] - before[n]).ravel() for n in sorted(before)])
    guess = prediction.scale * np.concatenate([named[n].ravel() for n in sorted(before)])
    assert true @ guess / np.linalg.norm(true) / np.linalg.norm(guess) > 0.3


def test_f20_f23_weights_change_and_the_loss_falls_during_predict():
    adapter, batches, probes = clouds(optimizer=OptimizerSpec("sgd", 0.02))
    config = configure(phases={"predict_mode": "step", "predict_steps": 4}, history={"window": 6})
    engine, _ = build(adapter, config, Scripted(full(14), predict(10.0, 20)), Drift(), probes)
    drive(engine, 18, batches)
    held_out = lambda: np.mean([adapter.model.losses(adapter.params, b).mean() for b in probes])  # noqa: E731
    losses, weights = [held_out()], [adapter.params["weight"].copy()]
    for _ in range(4):
        assert engine.phase is Phase.PREDICT
        drive(engine, 1, batches)
        losses.append(held_out())
        weights.append(adapter.params["weight"].copy())
    assert (np.diff(losses) < 0).all()
    assert all(np.any(a != b) for a, b in pairwise(weights))


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_f21_y_predicted_steps_sum_to_one_whole_change(steps):
    adapter = bowl()
    config = configure(phases={"predict_mode": "step", "predict_steps": steps})
    engine, recorder = build(adapter, config, Scripted(full(4), predict(horizon=6.0, settle=20)))
    drive(engine, 7)
    path = [adapter.params["w"].copy()]
    for _ in range(1 + steps):
        drive(engine, 1)
        path.append(adapter.params["w"].copy())
    update = path[1] - path[0]
    for before, after in pairwise(path[1:]):
        np.testing.assert_allclose(after - before, 6.0 * update / steps, atol=1e-6)
    np.testing.assert_allclose(path[-1] - path[1], 6.0 * update, atol=1e-6)
    assert len(recorder.named("predicted-step")) == steps
    assert engine.counts.predicted_steps == pytest.approx(6.0)


def test_f21_a_jump_is_applied_once():
    adapter = bowl()
    engine, _ = build(adapter, configure(), Scripted(full(4), predict(horizon=6.0, settle=20)))
    drive(engine, 7)
    before = adapter.params["w"].copy()
    drive(engine, 1)
    real = before - 0.01 * adapter.curvature * (before - adapter.optimum)
    np.testing.assert_allclose(adapter.params["w"], real + 6.0 * (real - before), atol=1e-6)


@pytest.mark.parametrize(
    "deltas",
    [(np.zeros(19, np.float32),), (), (np.full(20, np.nan, np.float32),)],
    ids=["size", "none", "nan"],
)
def test_f22_a_change_that_does_not_fit_is_refused_and_said_aloud(deltas, caplog):
    adapter, plain = bowl(), bowl()
    script = Scripted(full(4), predict())
    engine, recorder = build(adapter, configure(), script, Proposes(lambda history, horizon: deltas))
    with caplog.at_level(logging.WARNING, "hybridcore"):
        drive(engine, 12)
    for _ in range(12):
        plain.train_step(None)
    np.testing.assert_array_equal(adapter.params["w"], plain.params["w"])
    (refusal,) = recorder.named("jump-refused")
    assert "buckets do not fit" in refusal["reason"] or "not finite" in refusal["reason"]
    assert script.outcomes[0].kept is False and script.outcomes[0].jumps == 0
    assert "refused" in caplog.text


def test_f22_the_adapter_itself_raises():
    with pytest.raises(DeltaError):
        bowl().apply_delta((np.zeros(19, np.float32),))


def test_f49_f60_predict_takes_no_gradient_and_backward_passes_are_those_that_happened():
    adapter, batches, probes = clouds()
    config = configure(phases={"predict_mode": "step", "predict_steps": 4})
    engine, _ = build(
        adapter, config, Fixed(FixedConfig(horizon=4.0, full_steps=5, correct_steps=4)), probes=probes
    )
    counted = []
    for _ in range(120):
        phase, before = engine.phase, adapter.gradients
        drive(engine, 1, batches)
        counted.append((phase is Phase.PREDICT, adapter.gradients - before))
    assert {c for p, c in counted if p} == {0} and {c for p, c in counted if not p} == {1}
    summary = engine.summary()
    assert summary["backward_passes"] == adapter.gradients == adapter.train_steps < 120
    assert summary["real_steps"] == adapter.train_steps


def test_a_predicted_step_out_of_place_is_an_error():
    engine, _ = build(bowl())
    with pytest.raises(PredictionError, match="no predicted step"):
        engine.predicted_step()


@pytest.mark.parametrize("every", [1, 2])
def test_the_loss_of_predicted_steps_is_measured_where_asked_for(every):
    adapter, batches, probes = clouds()
    config = configure(phases={"predict_mode": "step", "predict_steps": 4, "forward_every": every})
    engine, _ = build(adapter, config, Scripted(full(4), predict(settle=9)), probes=probes)
    drive(engine, 8, batches)
    cost = engine.counts.cost
    for k in range(1, 5):
        batch = next(batches)
        result = engine.step(batch)
        if k % every:
            assert math.isnan(result.loss)
        else:
            assert result.loss == pytest.approx(adapter.model.losses(adapter.params, batch).mean(), rel=1e-9)
    assert engine.counts.cost - cost == pytest.approx(4 // every / 3)


# -- construction: F72, F77 --------------------------------------------------------------------------


def test_f72_the_same_seed_gives_the_same_trace():
    from hybridcore.predictors.controls import RandomJump

    def once(seed):
        adapter, batches, probes = clouds()
        config = configure(
            budget={"share": 0.2, "grace_steps": 60.0, "count_seconds": False}, run={"seed": seed}
        )
        controller = Fixed(FixedConfig(horizon=3.0, full_steps=5, correct_steps=4))
        engine, recorder = build(adapter, config, controller, RandomJump(), probes)
        drive(engine, 250, batches)
        assert recorder.named("jump")
        return recorder.trace(), adapter.params["weight"]

    (first, weights), (second, same), (third, other) = once(1), once(1), once(2)
    assert first == second and np.array_equal(weights, same)
    assert first != third and not np.array_equal(weights, other)


def test_f77_constructing_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root, own = logging.getLogger(), logging.getLogger("hybridcore")
    before = list(root.handlers), list(own.handlers), own.level, np.random.get_state()[1].tolist()
    adapter = bowl()
    weights = adapter.params["w"].copy()
    engine = Engine(adapter, HybridConfig(), Threshold(), {"drift": Drift()})
    assert (list(root.handlers), list(own.handlers), own.level, np.random.get_state()[1].tolist()) == before
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
    np.testing.assert_array_equal(adapter.params["w"], weights)
    assert adapter.train_steps == engine.counts.real_steps == 0


def test_f77_importing_the_engine_imports_no_framework():
    code = (
        "import hybridcore.engine, hybridcore.reference, sys, logging;"
        "heavy = {'torch', 'tensorflow', 'jax', 'keras', 'sklearn', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy; assert not logging.getLogger('hybridcore').handlers"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_engine_without_predictors_and_an_unknown_one_are_errors():
    with pytest.raises(PluginError, match="no predictor"):
        Engine(bowl(), HybridConfig(), Fixed(), {})
    demanding = configure(plugins={"on_error": "raise"})
    engine, _ = build(bowl(), demanding, Scripted(full(4), predict(predictor="oracle")))
    with pytest.raises(PluginFailedError, match="does not have: 'oracle'") as caught:
        drive(engine, 9)
    assert caught.value.where == "controller 'scripted'"


def test_f81_nothing_is_predicted_until_the_remembered_probes_are_complete():
    """Otherwise the probe set would grow between a jump and its verdict."""
    adapter, batches, _ = clouds()
    config = configure(phases={"warmup_steps": 0, "full_steps": 1}, probe={"batches": 6})
    engine, recorder = build(adapter, config, Eager())
    drive(engine, 5, batches)
    assert recorder.named("jump") == []
    drive(engine, 20, batches)
    assert {p["examples"] for p in recorder.named("probe")} <= {6 * 32}
    assert recorder.named("jump")[0]["step"] >= 6


def test_f52_the_summary_is_plain_data_and_survives_json():
    engine, _ = build(bowl())
    drive(engine, 100)
    summary = engine.finish()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["jumps"] == summary["verdicts_kept"] + summary["verdicts_failed"] > 0


def test_f41_a_skipped_batch_is_not_learned_from():
    adapter, batches, probes = clouds()
    predictor = Proposes(lambda history, horizon: history.current())
    engine, recorder = build(adapter, configure(), Scripted(), predictor, probes)
    drive(engine, 6, batches)
    x, y = next(batches)
    before, statistics = adapter.params["weight"].copy(), engine.statistics.state_dict()
    assert engine.step((np.full_like(x, np.inf), y)).skipped
    np.testing.assert_array_equal(adapter.params["weight"], before)
    assert engine.statistics.state_dict() == statistics
    assert len(predictor.records) == 6
    assert len(recorder.named("step-skipped")) == engine.counts.skipped == 1
