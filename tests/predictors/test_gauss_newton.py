from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from trajectory_lab import change, remember, window_means

from hybridcore.errors import PredictionError
from hybridcore.predictors.drift import Drift
from hybridcore.predictors.gauss_newton import GaussNewton


def wandering(seed=0, steps=20):
    return np.cumsum(0.1 * np.random.default_rng(seed).standard_normal((steps + 1, 12)), axis=0)


def problem(seed=0, rows=30, bend=0.0):
    """Residuals ``A w - b``, bent by `bend`, and their derivatives."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rows, 12)), rng.standard_normal(rows)

    def residuals(w):
        return a @ w - b + bend * (a @ w) ** 3

    def jacobian(w):
        return a * (1.0 + 3.0 * bend * (a @ w)[:, None] ** 2)

    return residuals, jacobian


def propose(predictor, path, residuals, jacobian):
    """The change at the path's end, and how often it linearised and measured."""
    calls = {"directions": 0, "measured": 0}
    here = path[-1]

    def linearise(directions):
        calls["directions"] += len(directions)
        flat = np.stack([np.concatenate(d).astype(np.float64) for d in directions], axis=1)
        return residuals(here), jacobian(here) @ flat

    def measure(buckets):
        calls["measured"] += 1
        return float(np.mean(residuals(here + np.concatenate(buckets)) ** 2))

    history = remember(path, Drift())  # a predictor that is told of the path starts anew
    return change(predictor.predict_linearised(history, 10.0, xp, linearise, measure)), calls


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_f85_linear_residuals_are_minimised_over_the_subspace(dimensions):
    """Against `numpy.linalg.lstsq`, with the damping almost off."""
    path = wandering()
    residuals, jacobian = problem()
    predictor = GaussNewton(GaussNewton.Config(dimensions=dimensions, damping=1e-12))
    got, calls = propose(predictor, path, residuals, jacobian)
    means = window_means(path)
    basis = np.stack([path[-1] - means[-1], means[-1] - means[-2], path[-1] - path[-2]][:dimensions], axis=1)
    shares, *_ = np.linalg.lstsq(jacobian(path[-1]) @ basis, -residuals(path[-1]), rcond=None)
    expected = basis @ shares
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.linalg.norm(expected))
    assert calls == {"directions": dimensions, "measured": 1}


def test_f85_damping_is_marquardts():
    """One direction: ``z = -J'r / ((1 + lambda) J'J)``."""
    path = wandering(1)
    residuals, jacobian = problem(1)
    changes = [
        propose(GaussNewton(GaussNewton.Config(dimensions=1, damping=d)), path, residuals, jacobian)[0]
        for d in (1e-12, 1.0, 3.0)
    ]
    np.testing.assert_allclose(changes[1], changes[0] / 2.0, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(changes[2], changes[0] / 4.0, rtol=1e-3, atol=1e-6)


def test_f85_the_way_between_predictions_is_a_direction():
    """The minimum over the window lead and the difference of the means at both predictions."""
    residuals, jacobian = problem(2)
    predictor = GaussNewton(GaussNewton.Config(dimensions=2, damping=1e-12))
    first, second = wandering(2), wandering(3)
    propose(predictor, first, residuals, jacobian)
    got, _ = propose(predictor, second, residuals, jacobian)
    mean, before = window_means(second)[-1], window_means(first)[-1]
    basis = np.stack([second[-1] - mean, mean - before], axis=1)
    shares, *_ = np.linalg.lstsq(jacobian(second[-1]) @ basis, -residuals(second[-1]), rcond=None)
    np.testing.assert_allclose(got, basis @ shares, atol=1e-3 * np.linalg.norm(basis @ shares))
    larger = GaussNewton(GaussNewton.Config(dimensions=5))
    counts = [
        propose(larger, p, residuals, jacobian)[1]["directions"] for p in (first, second, first, second)
    ]
    assert counts == [3, 4, 5, 5]
    larger.reset(None, np.random.default_rng(0))
    assert propose(larger, second, residuals, jacobian)[1]["directions"] == 3


def test_f85_damping_grows_until_the_loss_falls_and_then_shrinks():
    residuals, jacobian = problem(4, bend=30.0)
    start = 0.3 * wandering(4)
    predictor = GaussNewton(GaussNewton.Config(damping=1e-6, tries=30))
    # Derivatives a hundred times too small promise too long a step.
    got, calls = propose(predictor, start, residuals, lambda w: 0.01 * jacobian(w))
    assert calls["measured"] > 1
    assert predictor._damping == pytest.approx(1e-6 * 8.0 ** (calls["measured"] - 1) / 5.0)
    assert np.mean(residuals(start[-1] + got) ** 2) < np.mean(residuals(start[-1]) ** 2)


def test_f85_a_change_that_lowers_nothing_is_refused():
    path = wandering(5)
    residuals, jacobian = problem(5)
    predictor = GaussNewton(GaussNewton.Config(tries=3))
    with pytest.raises(PredictionError, match="no damping tried"):
        propose(predictor, path, residuals, lambda w: -jacobian(w))
    assert predictor._damping == pytest.approx(1e-2 * 8.0**3)


def test_without_residuals_it_is_the_drift():
    path = wandering(6)
    predictor = GaussNewton()
    history = remember(path, predictor)
    means = window_means(path)
    expected = 10.0 / history.window * (means[-1] - means[-2])
    np.testing.assert_allclose(change(predictor.predict(history, 10.0, xp)), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("key", "one", "other"), [("dimensions", 1, 3), ("damping", 1e-6, 1.0), ("tries", 1, 30)]
)
def test_f57_the_option_changes_the_proposal(key, one, other):
    residuals, jacobian = problem(4, bend=30.0)
    results = []
    for value in (one, other):
        try:
            predictor = GaussNewton(GaussNewton.Config(**{"tries": 30, "damping": 1e-6, key: value}))
            got, _ = propose(predictor, 0.3 * wandering(4), residuals, lambda w: 0.01 * jacobian(w))
        except PredictionError:
            got = np.zeros(12)
        results.append(got)
    assert not np.allclose(*results)
