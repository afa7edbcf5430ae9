from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from engine_lab import Scripted, bowl, build, configure, drive
from trajectory_lab import change, moved, recursion, remember, window_means

from hybridcore.predictors.anderson import Anderson
from hybridcore.protocols import OptimizerSpec


def make(**options):
    return Anderson(Anderson.Config(**options))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_f85_it_lands_on_the_optimum_of_a_quadratic_of_few_dimensions(size):
    adapter = bowl(size=size, condition=5.0, optimizer=OptimizerSpec("sgd", 0.3))
    predictor = make(ridge=1e-10)
    engine, _ = build(adapter, configure(), Scripted(), predictor)
    drive(engine, 22)
    before = np.linalg.norm(adapter.params["w"] - adapter.optimum)
    got = predictor.predict(engine.history, 5.0, xp)
    after = np.linalg.norm(adapter.params["w"] + change(got) - adapter.optimum)
    assert after < 0.01 * before
    assert got.confidence > 0.98


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_f85_the_coefficients_solve_the_constrained_problem(ridge, mixing):
    """Against the Lagrange conditions of min |R c|^2 + lambda |c|^2 with sum c = 1."""
    path = recursion(25) + 0.01 * np.random.default_rng(1).standard_normal((26, 12))
    means = window_means(path)[-5:]
    residuals = np.diff(means, axis=0)
    products = residuals @ residuals.T
    scaled = products + ridge * np.linalg.norm(products, 2) * np.eye(4)
    system = np.block([[2.0 * scaled, np.ones((4, 1))], [np.ones((1, 4)), np.zeros((1, 1))]])
    shares = np.linalg.solve(system, np.append(np.zeros(4), 1.0))[:4]
    expected = shares @ (means[:-1] + mixing * residuals) - path[-1]
    np.testing.assert_allclose(moved(make(ridge=ridge, mixing=mixing), path), expected, atol=1e-4)


def test_f85_a_strong_ridge_gives_the_mean():
    path = recursion(20)
    got = path[-1] + moved(make(ridge=1e9, mixing=0.0), path)
    np.testing.assert_allclose(got, window_means(path)[-5:-1].mean(axis=0), atol=1e-5)


def test_f85_a_part_of_the_way():
    path = recursion(20)
    np.testing.assert_allclose(moved(make(step=0.25), path), 0.25 * moved(make(), path), atol=1e-6)


def test_f85_weights_that_rest_stay_where_they_are():
    np.testing.assert_array_equal(moved(make(), np.ones((21, 12))), 0.0)


def test_f22_a_path_that_is_not_finite_is_refused():
    from hybridcore.errors import PredictionError

    path = recursion(20)
    path[-1, 0] = np.inf
    predictor = make()
    with np.errstate(invalid="ignore"), pytest.raises(PredictionError, match="not finite"):
        predictor.predict(remember(path, predictor), 5.0, xp)
