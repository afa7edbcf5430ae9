from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from engine_lab import Scripted, bowl, build, configure, drive

from hybridcore.predictors.drift import Drift, DriftConfig


class Line:
    """Model whose gradient is constant, so that SGD walks a straight line at constant speed."""

    rng = None

    def losses(self, params, batch):
        return np.array([float(params["w"].sum())])

    def gradient(self, params, batch):
        return {"w": np.arange(1.0, 21.0)}


def walked(predictor, steps=20, windows=3):
    adapter = bowl()
    adapter.model = Line()
    engine, _ = build(adapter, configure(history={"window": 4, "windows": windows}), Scripted(), predictor)
    drive(engine, steps)
    return adapter, engine.history


SPEED = -0.01 * np.arange(1.0, 21.0)


@pytest.mark.parametrize("anchor", ["iterate", "mean"])
@pytest.mark.parametrize("pairs", [1, 2, 7])
@pytest.mark.parametrize("horizon", [1.0, 10.0, -4.0])
@pytest.mark.parametrize("steps", [8, 20])
def test_f85_a_straight_walk_is_continued_exactly(anchor, pairs, horizon, steps):
    predictor = Drift(DriftConfig(anchor=anchor, pairs=pairs))
    _, history = walked(predictor, steps)
    got = predictor.predict(history, horizon, xp)
    np.testing.assert_allclose(got.scale * got.deltas[0], horizon * SPEED, atol=2e-5)
    assert got.horizon == horizon
    assert got.confidence == pytest.approx(1.0)


def test_f85_from_the_mean_the_noise_of_the_last_iterate_is_gone():
    predictor = Drift(DriftConfig(anchor="mean"))
    adapter, history = walked(predictor)
    noise = np.random.default_rng(0).standard_normal(20)
    clean = adapter.params["w"].copy()
    adapter.params["w"] += noise
    got = predictor.predict(history, 10.0, xp)
    np.testing.assert_allclose(
        adapter.params["w"] + got.scale * got.deltas[0], clean + 10.0 * SPEED, atol=2e-5
    )


def test_f85_the_iterate_anchor_is_left_of_the_iterate_alone():
    predictor = Drift()
    adapter, history = walked(predictor)
    adapter.params["w"] += 5.0
    got = predictor.predict(history, 10.0, xp)
    np.testing.assert_allclose(got.scale * got.deltas[0], 10.0 * SPEED, atol=2e-5)


def test_f85_it_is_ready_with_two_window_means():
    predictor = Drift()
    assert not predictor.ready(walked(predictor, 7)[1])
    assert predictor.ready(walked(predictor, 8)[1])


def test_f85_pairs_average_over_more_of_the_path():
    """On a curved path, two pairs give half the way from the third-newest mean to the newest."""
    adapter = bowl(condition=3.0)
    engine, _ = build(adapter, configure(), Scripted(), Drift())
    drive(engine, 12)
    means = [m[0].astype(float) for m in engine.history.window_means]
    got = Drift(DriftConfig(pairs=2)).predict(engine.history, 8.0, xp)
    np.testing.assert_allclose(got.scale * got.deltas[0], (means[2] - means[0]) / 8 * 8.0, atol=1e-5)
    one = Drift().predict(engine.history, 8.0, xp)
    assert not np.allclose(one.scale * one.deltas[0], got.scale * got.deltas[0])
