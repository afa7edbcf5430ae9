"""How learning curves bend (F82)."""

import math

import numpy as np
import pytest

from hybridcore.bend import bend, straightened


@pytest.mark.parametrize("q", [0.2, 0.5, 0.8])
def test_f82_the_power_of_a_curve_is_found(q):
    """A loss whose slope is t^-q, by its integral; three coarse means see it within a tenth."""
    losses = [5.0 - 0.1 * t ** (1.0 - q) / (1.0 - q) for t in range(20, 80)]
    assert bend(losses, 80.0) == pytest.approx(q, abs=0.1)


def test_f82_a_curve_that_falls_faster_and_faster_is_continued_straight():
    assert bend([5.0 - 0.001 * t * t for t in range(1, 40)], 40.0) == 0.0


@pytest.mark.parametrize("losses", [[1.0] * 30, [1.0, 2.0] * 3, [], list(range(30))])
def test_f82_without_a_slope_it_is_straight_over_the_logarithm(losses):
    assert bend(losses, 30.0) == 1.0


@pytest.mark.parametrize("q", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [-5.0, 3.0, 40.0])
def test_f82_straightened_steps_are_the_integral_of_the_slope(q, steps):
    age = 12.0
    t = age + (np.arange(100_000) + 0.5) / 100_000 * steps
    assert straightened(steps, age, q) == pytest.approx(float(np.mean((t / age) ** -q)) * steps, rel=1e-6)


def test_f82_late_in_a_run_nothing_bends():
    assert straightened(20.0, 1e6, 1.0) == pytest.approx(20.0, rel=1e-4)
    assert straightened(20.0, math.inf, 1.0) == 20.0
