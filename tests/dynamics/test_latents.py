"""F12: categorical draws have the stated frequencies, some entropy, and follow the seed."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np

from hybridcore.dynamics.categorical import UNIFORM, gumbel, sample


def test_f12_draws_follow_their_probabilities():
    logits = np.tile(np.log([0.5, 0.3, 0.2, 0.05, 0.9, 0.05]), (20000, 1)).astype(np.float32)
    z, p = sample(logits, gumbel(np.random.default_rng(0), logits.shape), 3, xp)
    expected = (1.0 - UNIFORM) * np.array([0.5, 0.3, 0.2, 0.05, 0.9, 0.05]) + UNIFORM / 3.0
    np.testing.assert_allclose(p[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(z.reshape(-1, 2, 3).sum(-1), 1.0)
    np.testing.assert_allclose(z.mean(axis=0), expected, atol=0.01)


def test_f12_no_categorical_is_without_entropy():
    _, p = sample(np.array([[1e4, 0.0, 0.0, 0.0]]), np.zeros((1, 4)), 4, xp)
    assert -np.sum(p * np.log(p)) > 0.01


def test_f12_the_seed_makes_the_draws():
    shape = (50, 8)
    draws = [sample(np.zeros(shape), gumbel(np.random.default_rng(s), shape), 4, xp)[0] for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
