from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from engine_lab import Scripted, bowl, build, configure, drive
from trajectory_lab import RATES, moved, recursion, remember, window_means

from hybridcore.predictors.spectral import Spectral


def make(**options):
    return Spectral(Spectral.Config(**{"tolerance": 1e-4, "ridge": 0.0, **options}))


@pytest.mark.parametrize("steps", [20, 22, 23])
@pytest.mark.parametrize("horizon", [1.0, 10.0, 60.0])
def test_f85_a_diagonal_linear_recursion_is_continued_exactly(steps, horizon):
    """From the current weights, wherever the open window stands: (rates^H - 1) (w - w*)."""
    path = recursion(steps)
    expected = (RATES**horizon - 1.0) * (path[-1] - 0.25)
    np.testing.assert_allclose(moved(make(), path, horizon), expected, atol=2e-4)


def test_f85_far_ahead_lies_the_fixed_point():
    path = recursion(20)
    np.testing.assert_allclose(path[-1] + moved(make(), path, 1000.0), 0.25, atol=1e-3)


def test_f85_growing_modes_are_held_at_one():
    path = recursion(20, np.full(12, 1.05), optimum=0.0)
    expected = 10.0 / 4.0 * np.diff(window_means(path), axis=0)[-1]
    np.testing.assert_allclose(moved(make(), path), expected, rtol=1e-3)


def test_f85_swinging_modes_stand_still():
    rates = np.repeat([0.9, -0.8], 6)
    path = recursion(8, rates)
    got = moved(make(), path, 7.0, window=1)
    np.testing.assert_allclose(got[:6], (0.9**7 - 1.0) * (path[-1] - 0.25)[:6], atol=1e-3)
    np.testing.assert_allclose(got[6:], 0.0, atol=1e-3)


def test_f85_a_strong_ridge_continues_straight():
    """The fit is pulled to the identity, in the span of all displacements but the newest."""
    path = recursion(20, np.full(12, 0.9))
    expected = 10.0 / 4.0 * np.diff(window_means(path), axis=0)[-1]
    np.testing.assert_allclose(moved(make(ridge=1e6), path), expected, rtol=1e-3)


def test_f85_backward_is_straight_back():
    path = recursion(20)
    expected = -6.0 / 4.0 * np.diff(window_means(path), axis=0)[-1]
    np.testing.assert_allclose(moved(make(), path, -6.0), expected, atol=1e-5)


def test_f85_confidence_is_the_share_explained():
    predictor = make()
    exact = predictor.predict(remember(recursion(20), predictor), 5.0, xp)
    noise = np.random.default_rng(0).standard_normal((21, 12))
    blind = predictor.predict(remember(noise, predictor), 5.0, xp)
    assert exact.confidence > 0.999
    assert blind.confidence < 0.9


def test_f85_weights_that_rest_stay_where_they_are():
    got = moved(make(), np.ones((21, 12)))
    np.testing.assert_array_equal(got, 0.0)


def test_f85_the_history_keeps_the_windows_it_wants():
    engine, _ = build(bowl(), configure(), Scripted(), make(windows=7))
    drive(engine, 40)
    assert len(engine.history.window_means) == 7


def test_f51_the_memory_budget_ends_what_it_wants():
    from hybridcore.predictors.drift import Drift

    least = 20 * 8 * (1 + 4 + 2 + 2) / 2**20
    reserved = bowl().snapshot_nbytes() / 2**20
    config = configure(history={"memory_budget_mib": least + reserved})
    engine, _ = build(bowl(), config, Scripted(), make(windows=7))
    assert 3 <= engine.history.windows < 7
    assert build(bowl(), config, Scripted(), Drift())[0].history.windows == 3
    drive(engine, 40)
    assert engine.predictors["spectral"].ready(engine.history)
