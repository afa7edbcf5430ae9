"""Correction in the engine: what it learns (F27), changes (F28), reverts (F29) and does on the way (F31)."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from engine_lab import (
    Proposes,
    Scripted,
    bits,
    bowl,
    build,
    clouds,
    configure,
    correct,
    drive,
    full,
    predict,
)

from hybridcore.controllers.credit import Credit, CreditConfig
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.correction.gains import Gains
from hybridcore.correction.loss_level import LossLevel
from hybridcore.correction.store import ResidualStore
from hybridcore.history import dot
from hybridcore.layout import ParamGroup
from hybridcore.predictors.drift import Drift
from hybridcore.protocols import OptimizerSpec

TRUSTING = {
    "probe": {"tentative": False},
    "verdict": {"confidence_z": 1e6, "guard_z": 1e6, "guard_factor": 1e6},
}
WIDE = {"groups": {"max_relative_jump": 1e9}}


def run(corrector, steps=400, seed=0, horizon=30.0, rate=0.02, **tables):
    adapter, batches, probes = clouds(seed, optimizer=OptimizerSpec("sgd", rate))
    controller = Fixed(FixedConfig(horizon=horizon, full_steps=12, correct_steps=6))
    config = configure(history={"window": 5}, **tables)
    engine, recorder = build(adapter, config, controller, Drift(), probes, corrector=corrector)
    drive(engine, steps, batches)
    engine.finish()
    return engine, recorder, adapter


def replay(residuals, corrector):
    """Errors of predicted and of corrected loss changes, each before the corrector hears of the outcome."""
    store = ResidualStore()
    corrector.reset(None, store)
    raw, corrected = [], []
    for residual in residuals:
        place, came = residual.situation, residual.realised_change
        if np.isfinite(place.predicted_change) and np.isfinite(came):
            raw.append(abs(place.predicted_change - came))
            corrected.append(abs(corrector.expected(place) - came))
        corrector.observe(residual)
        store.add(residual)
    return np.mean(raw), np.mean(corrected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_f27_corrected_predictions_are_nearer_on_replay_of_a_real_run(seed):
    engine, _, _ = run(LossLevel(), seed=seed)
    raw, corrected = replay(list(engine.corrections.store), LossLevel())
    assert len(engine.corrections.store) >= 10
    assert corrected < 0.8 * raw


def test_f27_similar_residuals_help_where_the_error_depends_on_the_place():
    """In two kinds of places predictions err in opposite ways; no regression on the prediction tells them."""
    from hybridcore.protocols import Residual, Situation

    rng = np.random.default_rng(0)
    residuals = []
    for step in range(60):
        kind = step % 2
        features = 0.1 * rng.standard_normal(28) + (1.0 if kind else -1.0)
        place = Situation(step, features, "drift", 20.0, 1.0, -0.2)
        residuals.append(Residual(place, -0.3 if kind else -0.1))
    alone = replay(residuals, LossLevel(LossLevel.Config(similar=0)))[1]
    similar = replay(residuals, LossLevel())[1]
    assert similar < 0.5 * alone


def test_f28_gains_are_the_least_squares_ones_of_the_real_displacement():
    """One jump of a known change; the real displacement is read from the model, apart from the engine."""
    adapter, batches, probes = clouds(optimizer=OptimizerSpec("sgd", 0.05))
    change = []

    def propose(history, horizon):
        rng = np.random.default_rng(5)
        change[:] = [
            0.002 * horizon * rng.standard_normal(b.shape).astype(np.float32) for b in history.current()
        ]
        return tuple(change)

    script = Scripted(full(4), predict(10.0, settle=8), correct(8))
    engine, recorder = build(
        adapter, configure(**TRUSTING), script, Proposes(propose), probes, corrector=Gains()
    )
    before, after = [], []
    inner = adapter.train_step

    def weights():
        return np.concatenate([np.ravel(adapter.params[n]) for n in adapter.layout.names])

    def watched(batch):
        before.append(weights())
        result = inner(batch)
        after.append(weights())
        return result

    adapter.train_step = watched
    drive(engine, 14, batches)
    # Steps 0 to 7 come before the jump; half of 8 settling steps are watched.
    r = (after[11] - before[8]) / 4.0
    p = np.concatenate(change).astype(np.float64) / 10.0
    (residual,) = engine.corrections.store
    at = 0
    for group, _, part in adapter.layout.group_slices():
        size = part.stop - part.start
        a, b = r[at : at + size], p[at : at + size]
        at += size
        assert residual.groups[group] == pytest.approx((a @ b, b @ b), rel=1e-3)
        gain = (a @ b + 2 * b @ b) / (3 * b @ b)
        assert engine.corrections.corrector.gains()[group] == pytest.approx(
            min(max(gain, 0.0), 1.5), rel=1e-3
        )
    assert recorder.named("residual")[0]["gains"]["matrix"] == pytest.approx(
        residual.groups[ParamGroup.MATRIX][0] / residual.groups[ParamGroup.MATRIX][1]
    )


def far(adapter, times):
    """A predictor that goes `times` as far to the optimum of a bowl as it should."""

    def propose(history, horizon):
        gap = adapter.optimum - adapter.params["w"]
        return ((times * gap).astype(np.float32),)

    return Proposes(propose)


class Halves(LossLevel):
    """Corrector that wants every change scaled by a factor once one was seen."""

    name = "halves"
    factor = 0.5

    def correct(self, prediction, situation, history, xp):
        return attrs.evolve(super().correct(prediction, situation, history, xp), scale=self.scale_now)

    @property
    def scale_now(self):
        return self.factor if self.observed else 1.0


def one_jump(corrector, times, settle=8, steps=16, **tables):
    adapter = bowl(noise=0.0, optimizer=OptimizerSpec("sgd", 1e-4))
    script = Scripted(full(20), predict(10.0, settle=settle), correct(settle))
    engine, recorder = build(
        adapter,
        configure(**TRUSTING, **WIDE, **tables),
        script,
        far(adapter, times),
        [None],
        corrector=corrector,
    )
    drive(engine, 24)
    before = adapter.params["w"].copy()
    drive(engine, steps)
    return engine, recorder, adapter, before


def test_f28_a_correction_in_the_correct_phase_moves_the_weights_to_a_lower_loss():
    """The jump went 1.8 times too far; cutting it by half of itself leaves 0.9 of the way."""
    engine, recorder, adapter, _ = one_jump(Halves(), times=1.8)
    (event,) = recorder.named("correction")
    assert event["kept"] and event["factor"] == pytest.approx(-0.5) and event["loss_change"] < 0.0
    assert engine.counts.corrections == 1
    gap = np.linalg.norm(adapter.params["w"] - adapter.optimum)
    other, _, plain, _ = one_jump(None, times=1.8)
    assert gap < 0.3 * np.linalg.norm(plain.params["w"] - plain.optimum)
    assert other.counts.corrections == 0


def test_f29_a_correction_that_makes_the_loss_worse_is_reverted_bit_for_bit():
    """The jump stopped half way; cutting it further is refuted by the probes."""
    engine, recorder, adapter, _ = one_jump(Halves(), times=0.5)
    (event,) = recorder.named("correction")
    assert not event["kept"] and event["loss_change"] > 0.0
    assert (engine.counts.corrections, engine.counts.corrections_reverted) == (0, 1)
    _, _, plain, _ = one_jump(None, times=0.5)
    assert bits(adapter.snapshot()) == bits(plain.snapshot())


def test_f29_after_refusals_the_probes_are_spared():
    adapter = bowl(optimizer=OptimizerSpec("sgd", 1e-4))
    script = Scripted(full(4), *[predict(10.0, settle=6), correct(6), full(4)] * 12)

    class Restless(Halves):
        """Wants another half than the one applied, each time anew."""

        @property
        def scale_now(self):
            return 0.5 if self.observed % 2 else 1.0

    engine, recorder = build(
        adapter, configure(**TRUSTING, **WIDE), script, far(adapter, 0.3), [None], corrector=Restless()
    )
    drive(engine, 130)
    asked = len(recorder.named("correction"))
    assert 0 < asked < engine.counts.jumps / 2


def test_f29_a_failed_verdict_restores_what_was_before_jump_and_correction():
    adapter = bowl(optimizer=OptimizerSpec("sgd", 1e-4))
    script = Scripted(full(20), predict(10.0, settle=8), correct(8))
    config = configure(**WIDE, probe={"tentative": False}, verdict={"guard_z": 1e6, "guard_factor": 1e6})
    engine, recorder = build(adapter, config, script, far(adapter, 5.0), [None], corrector=Halves())
    drive(engine, 23)
    inner, seen = engine._trials.open, []

    def opened(*args):
        trial = inner(*args)
        seen.append(bits(adapter.snapshot()))
        return trial

    engine._trials.open = opened
    restore, after = adapter.restore, []

    def restored(snapshot):
        restore(snapshot)
        after.append(bits(adapter.snapshot()))

    adapter.restore = restored
    drive(engine, 9)
    assert recorder.named("correction")[0]["kept"]
    assert not recorder.named("verdict")[0]["kept"]
    assert after == seen and len(seen) == 1


def test_a_jump_refused_by_the_tentative_test_teaches_too():
    adapter = bowl(optimizer=OptimizerSpec("sgd", 1e-4))
    script = Scripted(full(20), predict(10.0, settle=8), correct(8))
    engine, recorder = build(
        adapter, configure(**WIDE), script, far(adapter, 5.0), [None], corrector=LossLevel()
    )
    drive(engine, 26)
    assert recorder.named("jump-refused")
    (residual,) = engine.corrections.store
    assert residual.realised_change > 0.0


STEP = {"predict_mode": "step", "predict_steps": 10}


@pytest.mark.parametrize("interval", [0, 1, 3, 4])
@pytest.mark.parametrize("judge", ["probe", "guard"])
def test_f31_micro_corrections_are_counted_by_the_interval(interval, judge):
    adapter = bowl(optimizer=OptimizerSpec("sgd", 1e-3))
    cycle = predict(10.0, settle=6, judge=judge, length=10), correct(6), full(4)
    script = Scripted(full(4), *cycle * 3)
    config = configure(**TRUSTING, **WIDE, phases=STEP, correction={"interval": interval})
    engine, recorder = build(adapter, config, script, far(adapter, 0.5), [None], corrector=LossLevel())
    drive(engine, 80)
    taken = len(recorder.named("predicted-step"))
    assert taken == 30
    wanted = 3 * (10 // interval) if interval else 0
    assert (
        engine.counts.micro_corrections == wanted == len(recorder.named("correction")) - corrected(recorder)
    )


def corrected(recorder):
    return sum(e["kind"] == "correct" for e in recorder.named("correction"))


def test_f31_a_micro_correction_ends_the_change_where_the_loss_is_lowest():
    """A bowl of equal curvatures is a parabola along any line to its optimum: lowest at one third of 3."""
    places = {}
    for interval in (0, 3):
        adapter = bowl(condition=1.0, optimizer=OptimizerSpec("sgd", 1e-6))
        script = Scripted(full(4), predict(10.0, settle=6, length=10), correct(6))
        config = configure(**TRUSTING, **WIDE, phases=STEP, correction={"interval": interval})
        engine, _ = build(adapter, config, script, far(adapter, 3.0), [None], corrector=LossLevel())
        drive(engine, 8)
        start = np.linalg.norm(adapter.params["w"] - adapter.optimum)
        drive(engine, 10)
        places[interval] = np.linalg.norm(adapter.params["w"] - adapter.optimum) / start
    assert places[0] == pytest.approx(2.0, rel=1e-3)
    assert places[3] < 1e-3


def test_f31_shares_that_are_left_add_up_to_the_new_target():
    adapter = bowl(condition=1.0, optimizer=OptimizerSpec("sgd", 1e-6))
    script = Scripted(full(4), predict(10.0, settle=6, length=10), correct(6))
    config = configure(**TRUSTING, **WIDE, phases=STEP, correction={"interval": 4})
    engine, recorder = build(adapter, config, script, far(adapter, 1.0), [None], corrector=Gains())
    drive(engine, 18)
    targets = [1.0 + e["factor"] for e in recorder.named("correction") if e["kind"] == "micro"]
    assert len(targets) == 2
    assert engine.counts.predicted_steps == pytest.approx(10.0 * targets[-1], rel=1e-6)
    assert recorder.named("jump")[0]["horizon"] == pytest.approx(10.0 * targets[-1], rel=1e-6)


def continuous(corrector, steps=500):
    adapter, batches, probes = clouds(optimizer=OptimizerSpec("sgd", 1e-3))
    engine, recorder = build(adapter, configure(), Credit(), None, probes, corrector=corrector)
    reads = []
    inner = adapter.read_params
    adapter.read_params = lambda out=None: reads.append(1) or inner(out)
    drive(engine, steps, batches)
    return engine, recorder, adapter, len(reads)


def test_gains_apply_to_continuous_changes_and_are_sampled_rarely():
    engine, recorder, adapter, reads = continuous(Gains())
    _, _, other, plain_reads = continuous(None)
    sampled = recorder.named("residual")
    assert 2 <= len(sampled) <= 5
    assert all(e["realised_change"] != e["realised_change"] for e in sampled)
    assert reads - plain_reads <= 2 * len(sampled) + 2
    assert engine.counts.jumps > 100
    assert bits(adapter.snapshot()) != bits(other.snapshot())


def test_gains_scale_the_groups_of_a_continuous_change():
    """What is applied after a real step is the last update times h - 1 and the gain, group by group."""
    corrector = Gains()
    adapter, batches, probes = clouds(optimizer=OptimizerSpec("sgd", 1e-3))
    config = configure(groups={"max_relative_repeat": 0.5})
    engine, _ = build(
        adapter, config, Credit(CreditConfig(patience=0, trust=1.0)), None, probes, corrector=corrector
    )
    applied = []
    inner = adapter.apply_delta

    def watched(deltas, scale=1.0, groups=None):
        applied.append(dict(groups or {}))
        inner(deltas, scale, groups)

    adapter.apply_delta = watched
    drive(engine, 300, batches)
    gains = [g[ParamGroup.MATRIX] for g in applied if g]
    assert gains[0] == 1.0
    assert gains[-1] == pytest.approx(corrector.gains()[ParamGroup.MATRIX], rel=1e-6)
    assert gains[-1] != 1.0


def test_a_store_outlives_the_run_and_the_next_begins_with_it(tmp_path):
    tables = {"correction": {"store": str(tmp_path / "store")}}
    first, _, _ = run(LossLevel(), **tables)
    second, _, _ = run(LossLevel(), steps=1, seed=1, **tables)
    assert second.corrections.corrector.observed == first.corrections.corrector.observed > 5
    assert second.corrections.corrector.state_dict() == first.corrections.corrector.state_dict()
    fresh, _, _ = run(LossLevel(), steps=1, seed=1)
    assert fresh.corrections.corrector.observed == 0


def test_without_a_corrector_nothing_is_measured_kept_or_written(tmp_path):
    tables = {"correction": {"store": str(tmp_path / "store"), "interval": 1}}
    engine, recorder, _ = run(None, **tables)
    assert len(engine.corrections.store) == 0 and not (tmp_path / "store").exists()
    assert not recorder.named("residual") and not recorder.named("correction")


def test_state_round_trip_of_the_keeper():
    engine, _, _ = run(Gains(Gains.Config(rank=1)), seed=3)
    heir, _, _ = run(Gains(Gains.Config(rank=1)), steps=1, seed=3)
    heir.corrections.load_state_dict(engine.corrections.state_dict())
    a, b = engine.corrections, heir.corrections
    assert b.corrector.gains() == a.corrector.gains() and b.corrector.carry == a.corrector.carry
    assert [r.situation.step for r in b.store] == [r.situation.step for r in a.store]
    assert a.corrector.carry >= 0.0 and dot(
        a.corrector._residual.expand(np), a.corrector._residual.expand(np), np
    )
