"""Gains and weight residuals against closed forms (F28)."""

from __future__ import annotations

import numpy as np
import pytest
from engine_lab import Proposes, Scripted, bowl, build, configure, correct, drive, full, predict

from hybridcore.correction.compression import compress_buckets
from hybridcore.correction.gains import Gains
from hybridcore.correction.store import ResidualStore
from hybridcore.layout import ParamGroup, ParamLayout
from hybridcore.protocols import Correction, OptimizerSpec, Prediction, Residual, Situation

LAYOUT = ParamLayout.plan([("w", (30, 20), "float32", "cpu", None), ("b", (7,), "float32", "cpu", None)])
PLACE = Situation(1, np.zeros(28), "drift", 20.0, 1.0, -0.1)


def prepared(**options):
    corrector = Gains(Gains.Config(**options))
    corrector.reset(LAYOUT, ResidualStore(5))
    return corrector


def test_f28_the_gain_is_the_weighted_ridge_solution():
    rng = np.random.default_rng(0)
    corrector = prepared(forgetting=0.8, prior=3.0, max_gain=9.0)
    cross, square = rng.uniform(0.1, 2.0, 12), rng.uniform(0.5, 5.0, 12)
    for a, b in zip(cross, square, strict=True):
        corrector.observe(Residual(PLACE, -0.1, {ParamGroup.BIAS: (a, b)}))
    weights = 0.8 ** np.arange(11, -1, -1)
    # Each measurement is a row sqrt(w b) g = sqrt(w / b) a; the prior is a row that asks for g = 1.
    prior = 3.0 * (weights @ square) / weights.sum()
    rows = np.sqrt(np.append(weights * square, prior))[:, None]
    wanted = np.append(np.sqrt(weights / square) * cross, np.sqrt(prior))
    (gain,), *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    assert corrector.gains() == pytest.approx({ParamGroup.BIAS: gain})


def test_gains_are_bounded():
    corrector = prepared(max_gain=1.2)
    groups = {ParamGroup.BIAS: (50.0, 1.0), ParamGroup.MATRIX: (-50.0, 1.0)}
    corrector.observe(Residual(PLACE, -0.1, groups))
    assert corrector.gains() == {ParamGroup.BIAS: 1.2, ParamGroup.MATRIX: 0.0}


def test_relative_gains_keep_the_mean_over_the_squared_change():
    corrector = prepared(relative=True, max_gain=9.0)
    for _ in range(5):
        groups = {ParamGroup.BIAS: (0.9, 1.0), ParamGroup.MATRIX: (0.3, 3.0)}
        corrector.observe(Residual(PLACE, -0.1, groups))
    gains = corrector.gains()
    assert (1.0 * gains[ParamGroup.BIAS] + 3.0 * gains[ParamGroup.MATRIX]) / 4.0 == pytest.approx(1.0)
    assert gains[ParamGroup.BIAS] > 1.0 > gains[ParamGroup.MATRIX]


def leftover(rng, rank=2):
    low = rng.standard_normal((30, rank)) @ rng.standard_normal((rank, 20))
    whole = np.concatenate([np.ravel(low), rng.standard_normal(7)])
    return LAYOUT.pack({"w": whole[:600].reshape(30, 20), "b": whole[600:]}, _xp())


def _xp():
    from array_api_compat import numpy as xp

    return xp


@pytest.mark.parametrize("lasting", [True, False])
def test_f28_a_residual_that_lasts_is_added_and_noise_is_not(lasting):
    xp, rng = _xp(), np.random.default_rng(0)
    corrector = prepared(rank=2)
    fixed = leftover(rng)
    for _ in range(8):
        e = fixed if lasting else leftover(rng)
        weights = compress_buckets(e, LAYOUT, 2, xp, rng)
        corrector.observe(Residual(PLACE, -0.1, {}, weights))
    deltas = tuple(xp.zeros(n, dtype=xp.float32) for n in LAYOUT.bucket_sizes)
    found = corrector.correct(Prediction(deltas, 20.0, 1.0), PLACE, None, xp)
    if lasting:
        assert corrector.carry == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_allclose(found.residual[0], fixed[0], atol=1e-4)
    else:
        assert corrector.carry < 0.1


def test_f28_a_residual_of_another_model_is_not_added():
    xp, rng = _xp(), np.random.default_rng(0)
    other = ParamLayout.plan([("w", (9, 9), "float32", "cpu", None)])
    weights = compress_buckets((xp.ones(81, dtype=xp.float32),), other, 1, xp, rng)
    corrector = prepared(rank=1)
    for _ in range(3):
        corrector.observe(Residual(PLACE, -0.1, {}, weights))
    deltas = tuple(xp.zeros(n, dtype=xp.float32) for n in LAYOUT.bucket_sizes)
    assert corrector.correct(Prediction(deltas, 20.0, 1.0), PLACE, None, xp).neutral


class Adds(Gains):
    """Adds one per step and doubles all groups."""

    def correct(self, prediction, situation, history, xp):
        ones = tuple(xp.ones(b.shape[0], dtype=xp.float32) for b in prediction.deltas)
        return Correction(scale=0.5, gains=dict.fromkeys(ParamGroup, 2.0), residual=ones)


def test_f28_the_applied_change_is_scale_times_gain_times_change_plus_residual_per_step():
    adapter = bowl(optimizer=OptimizerSpec("sgd", 1e-12))
    three = Proposes(lambda history, horizon: tuple(np.full_like(b, 3.0) for b in history.current()))
    config = configure(
        groups={"max_relative_jump": 1e9},
        probe={"tentative": False},
        verdict={"confidence_z": 1e9, "guard_z": 1e9, "guard_factor": 1e9},
    )
    script = Scripted(full(4), predict(10.0, settle=8), correct(8))
    engine, _ = build(adapter, config, script, three, [None], corrector=Adds())
    drive(engine, 7)
    before = adapter.params["w"].copy()
    drive(engine, 1)
    # Half of 3 and, for the half of 10 steps that this stands for, 1 each; all of it times 2.
    np.testing.assert_allclose(adapter.params["w"] - before, 2.0 * (1.5 + 5.0), rtol=1e-5)
    assert engine.counts.predicted_steps == pytest.approx(5.0)


def test_copies_of_the_weights_are_part_of_the_memory_budget():
    sizes = [
        build(bowl(), configure(), None, None, [None], corrector=c)[0].history.planned_bytes()
        for c in (None, Gains())
    ]
    assert sizes[1] - sizes[0] == 4 * bowl().layout.nbytes
