from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from engine_lab import Scripted, bowl, build, configure, drive, full, predict
from trajectory_lab import change, moved, recursion, remember, window_means

from hybridcore.predictors.outer_momentum import OuterMomentum


def make(**options):
    return OuterMomentum(OuterMomentum.Config(**options))


def test_f85_nesterov_is_the_recursion_written_out():
    """v_3 = d_3 + mu d_2 + mu^2 d_1 over three predictions, and the change is mu v_3."""
    path = recursion(40)
    predictor = make(length="own", momentum=0.8)
    histories = [remember(path[: n + 1], predictor) for n in (12, 24, 40)]
    d1, d2, d3 = (np.diff(window_means(path[: n + 1]), axis=0)[-1] for n in (12, 24, 40))
    for history in histories:
        got = predictor.predict(history, 5.0, xp)
    np.testing.assert_allclose(change(got), 0.8 * (d3 + 0.8 * d2 + 0.64 * d1), atol=1e-6)
    assert got.horizon == pytest.approx(4 * 0.8 * (1 + 0.8 + 0.64))


def test_f85_its_own_horizon_is_what_the_change_is_worth_on_a_straight_line():
    line = np.outer(np.arange(41), np.linspace(-0.02, 0.03, 12))
    for options in ({"mode": "nesterov"}, {"mode": "ema", "momentum": 0.95}, {"mode": "lookahead"}):
        predictor = make(length="own", **options)
        history = remember(line, predictor)
        for _ in range(3):
            got = predictor.predict(history, 1.0, xp)
        np.testing.assert_allclose(change(got), got.horizon * (line[1] - line[0]), atol=2e-5)


def test_f85_reset_empties_the_buffer():
    path = recursion(12)
    predictor = make()
    first = moved(predictor, path)
    predictor.predict(remember(path, predictor), 10.0, xp)
    np.testing.assert_array_equal(moved(predictor, path), first)


def test_f85_ema_weighs_each_window_by_its_age():
    path = recursion(12)
    steps = np.diff(window_means(path), axis=0)
    weights = np.array([0.7**4, 1.0])
    mean = weights @ steps / weights.sum() / 4
    np.testing.assert_allclose(moved(make(mode="ema", momentum=0.7), path), 10.0 * mean, atol=1e-6)
    own = moved(make(mode="ema", momentum=0.7, length="own"), path)
    np.testing.assert_allclose(own, 0.7 / 0.3 * mean, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_f85_lookahead_lands_between_slow_and_fast_weights(share):
    path = recursion(12)
    slow = window_means(path)[0]
    got = path[-1] + moved(make(mode="lookahead", slow_step=share), path)
    np.testing.assert_allclose(got, slow + share * (path[-1] - slow), atol=1e-6)


def test_f85_a_step_back_counts_no_predicted_steps():
    script = Scripted(full(12), predict(10.0, 4), full(8))
    engine, recorder = build(bowl(), configure(), script, make(mode="lookahead", slow_step=0.9), [None])
    drive(engine, 30)
    assert len(recorder.named("jump")) == 1
    assert recorder.named("jump")[0]["horizon"] < 0.0
    assert engine.summary()["predicted_steps"] == 0.0
