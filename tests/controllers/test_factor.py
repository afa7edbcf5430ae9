"""The factor search on landscapes whose best factor is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hybridcore.controllers.factor import FactorSearch
from hybridcore.protocols import Outcome


def outcome(quickening=math.nan, error=0.0, *, kept=True, behind=0.0):
    return Outcome(
        kept, "last-update", 1.0, 20, 20, 0.0, 0.1, 0.0, 0.0, math.nan, "", quickening, error, behind
    )


def search(**settings):
    return FactorSearch(**{"step": 2.0, "low": 0.25, "high": 8.0, "z": 2.0, "pause": 40, **settings})


def climb(found, drop, trials, error=0.0, seed=0):
    """Run trials whose loss falls by ``drop(factor)`` and give the factor of each."""
    random, used, before = np.random.default_rng(seed), [], math.nan
    for trial in range(trials):
        found.begin(20 * trial)
        used.append(found.value)
        fall = drop(found.value) + error * random.standard_normal()
        found.feedback(outcome(fall - before, math.sqrt(2.0) * error), 20 * trial + 20)
        before = fall
    return used


@pytest.mark.parametrize("best", [0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
def test_finds_the_best_factor(best):
    found = search()
    climb(found, lambda c: 1.0 - 0.1 * math.log2(c / best) ** 2, 200)
    assert found.best == best


def test_noise_wins_rarely():
    """With two standard errors a false win has a chance of 2.3 % per comparison."""
    moves = 0
    for seed in range(100):
        found = search()
        climb(found, lambda c: 1.0, 60, error=0.1, seed=seed)
        moves += found.best != 1.0
    assert moves < 30


def test_a_flattening_curve_is_no_reason_to_move():
    found, level = search(), [1.0]

    def drop(factor):
        level[0] *= 0.98
        return level[0]

    climb(found, drop, 100)
    assert found.best == 1.0


def test_comparisons_without_a_win_become_rarer():
    found = search(pause=20)
    used = climb(found, lambda c: 1.0 if c == 1.0 else 0.0, 200)
    tried = [i for i, c in enumerate(used) if c != 1.0]
    gaps = np.diff(tried)
    assert (np.diff(gaps) >= 0).all()
    assert gaps[-1] >= 16 * gaps[0] / 2


BAD = [outcome(-1.0, kept=False), outcome(-1.0, behind=3.0)]


@pytest.mark.parametrize("bad", BAD)
def test_a_longer_horizon_that_fails_takes_the_blame(bad):
    found = search()
    found.begin(0)
    assert not found.feedback(outcome(1.0), 20)
    found.begin(20)
    assert found.value == 2.0
    assert found.feedback(bad, 40)
    assert found.value == 1.0
    assert not found.feedback(bad, 60), "outside a comparison the horizon itself is to blame"


def test_switched_off_nothing_is_compared():
    found = search(step=1.0)
    found.begin(0)
    assert not found.comparing and not found.due(1000)


def test_the_first_trial_of_a_comparison_must_be_probed_and_kept():
    found = search()
    found.begin(0)
    found.feedback(outcome(kept=False), 20)
    assert not found.comparing


def test_state_round_trip_goes_on_alike():
    one, two = search(), search()
    climb(one, lambda c: c, 7)
    two.load_state_dict(one.state_dict())
    assert climb(one, lambda c: c, 20) == climb(two, lambda c: c, 20)
