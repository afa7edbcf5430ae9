from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from trajectory_lab import moved, recursion, remember, window_means

from hybridcore.errors import ConfigError
from hybridcore.predictors.coordinates import COORDINATE_MODELS, LinearModel
from hybridcore.predictors.latent import Latent


def make(**options):
    return Latent(Latent.Config(**{"ridge": 1e-9, **options}))


@pytest.mark.parametrize("windows", [1, 3, 10])
def test_f85_a_linear_recursion_of_two_modes_is_continued_exactly(windows):
    """By as much as the window means of the path's own continuation move."""
    path = recursion(24 + 4 * windows)
    means = window_means(path)
    got = moved(make(), path[:25], 4.0 * windows)
    np.testing.assert_allclose(got, means[-1] - means[5], atol=1e-3)


def test_f85_a_share_of_a_window_is_a_share_of_its_displacement():
    path = recursion(24)
    one, two = moved(make(), path, 4.0), moved(make(), path, 8.0)
    np.testing.assert_allclose(moved(make(), path, 6.0), (one + two) / 2, atol=1e-6)


def test_f85_a_strong_ridge_is_the_drift():
    path = recursion(24)
    drift = np.diff(window_means(path), axis=0)[-1]
    np.testing.assert_allclose(moved(make(ridge=1e9), path), 10.0 / 4.0 * drift, atol=1e-4)
    np.testing.assert_allclose(moved(make(), path, -6.0), -6.0 / 4.0 * drift, atol=1e-4)


def test_f85_few_coordinates_leave_noise_out():
    """One direction of drift under noise: the change of rank one is nearer to the drift's continuation."""
    rng = np.random.default_rng(0)
    velocity = rng.standard_normal(400) / 20.0
    path = np.outer(np.arange(25), velocity) + 0.05 * rng.standard_normal((25, 400))

    def miss(rank):
        return np.linalg.norm(moved(make(rank=rank, ridge=0.01), path) - 10.0 * velocity)

    assert miss(1) < 0.7 * miss(5)


def test_f85_the_order_is_the_one_that_foretells_best():
    model = LinearModel(3, 1e-12)
    two_modes = np.outer(0.5 ** np.arange(6), [1.0, 0.0]) + np.outer(0.9 ** np.arange(6), [0.0, 1.0])
    assert model.fit(two_modes) > 0.999
    assert len(model._coefficients) == 2
    # (x - 0.5) (x - 0.9) = x^2 - 1.4 x + 0.45
    np.testing.assert_allclose(model._coefficients, [1.4, -0.45], atol=1e-6)


def test_f85_no_displacement_exceeds_the_longest_one_seen():
    model = LinearModel(1, 0.0)
    model.fit(1.5 ** np.arange(5.0)[:, None])
    assert model.extrapolate(3.0)[0] == pytest.approx(3.0 * 1.5**4)


def test_f85_weights_that_rest_stay_where_they_are():
    np.testing.assert_array_equal(moved(make(), np.ones((25, 12))), 0.0)


class Halves:
    """Coordinate model that learns how often it was asked, and goes half of the newest displacement."""

    def __init__(self, order, ridge):
        self.fits = 0

    def fit(self, steps):
        self.fits += 1
        self.steps = steps
        return 0.5

    def extrapolate(self, windows):
        return 0.5 * self.steps[-1]

    def state_dict(self):
        return {"fits": self.fits}

    def load_state_dict(self, state):
        self.fits = state["fits"]


def test_f19_another_coordinate_model_can_be_named(monkeypatch):
    from hybridcore.components import build_component

    with pytest.raises(ConfigError, match="linear"):
        build_component(Latent, {"model": "halves"}, "predictor.latent")
    monkeypatch.setitem(COORDINATE_MODELS, "halves", Halves)
    predictor = build_component(Latent, {"model": "halves"}, "predictor.latent")
    path = recursion(24)
    got = moved(predictor, path)
    np.testing.assert_allclose(got, 0.5 * np.diff(window_means(path), axis=0)[-1], atol=1e-4)
    heir = build_component(Latent, {"model": "halves"}, "predictor.latent")
    heir.load_state_dict(predictor.state_dict())
    assert heir.state_dict() == {"model": {"fits": 1}}
    assert predictor.predict(remember(path, heir), 1.0, xp).confidence == 0.5
