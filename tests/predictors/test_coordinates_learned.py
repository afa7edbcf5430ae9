"""F85: networks on the coordinates of a path whose continuation is known in closed form."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from trajectory_lab import change, moved, recursion, remember, window_means

from hybridcore.predictors.coordinates import COORDINATE_MODELS
from hybridcore.predictors.latent import Latent

LIMITS = {"mlp": 0.25, "rssm": 0.8}
"""Largest miss as a share of that of the newest drift gone on with."""


def make(name):
    return Latent(Latent.Config(model=name, ridge=1e-3))


@pytest.mark.parametrize("name", sorted(LIMITS))
@pytest.mark.parametrize("windows", [1, 3])
def test_f85_a_linear_recursion_is_continued_better_than_by_its_drift(name, windows):
    path = recursion(24 + 4 * windows)
    means = window_means(path)
    wanted = means[-1] - means[5]
    drift = windows * (means[5] - means[4])
    miss = np.linalg.norm(moved(make(name), path[:25], 4.0 * windows) - wanted)
    assert miss < LIMITS[name] * np.linalg.norm(drift - wanted)


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_f85_the_basis_does_not_matter(name):
    """A rotated and scaled path is continued by the rotated and scaled change: up to signs of coordinates,
    which draws of the latent model break a little."""
    path = recursion(24)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0]
    one = moved(make(name), path, 8.0)
    other = moved(make(name), 3.0 * path @ turn, 8.0)
    np.testing.assert_allclose(other, 3.0 * one @ turn, atol=0.05 * np.linalg.norm(3.0 * one))


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_f53_an_heir_learns_on_from_where_the_model_was(name):
    path = recursion(40)
    first = make(name)
    moved(first, path[:25])
    heir = make(name)
    history = remember(path[:33], heir)  # resets, so that the state is put back after it
    heir.load_state_dict(first.state_dict())
    got = [change(p.predict(history, 6.0, xp)) for p in (first, heir)]
    np.testing.assert_array_equal(got[0], got[1])
    assert (change(make(name).predict(history, 6.0, xp)) != got[0]).any()


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_f85_resting_short_and_backward_paths(name):
    np.testing.assert_array_equal(moved(make(name), np.ones((25, 12))), 0.0)
    path = recursion(24)
    drift = np.diff(window_means(path), axis=0)[-1]
    np.testing.assert_allclose(moved(make(name), path, -6.0), -6.0 / 4.0 * drift, atol=1e-4)
    model = COORDINATE_MODELS[name](2, 0.01)
    assert model.fit(np.array([[1.0], [0.5]])) == 0.0
    assert model.extrapolate(2.0)[0] == 1.0
