"""F31: where a pending change should end, on parabolas with known minima; and the line through the losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridcore.correction.aim import aim
from hybridcore.correction.measurement import loss_curve
from hybridcore.protocols import Phase, StepRecord
from hybridcore.state import Statistics


@given(st.floats(-3.0, -0.01), st.floats(0.01, 5.0), st.floats(0.05, 0.45), st.floats(0.5, 1.0))
def test_two_measurements_find_the_minimum_of_a_parabola(p, q, a, b):
    points = [(s, p * s + q * s * s) for s in (a, b)]
    assert aim(points, math.nan, 1.5) == pytest.approx(min(-p / (2 * q), 1.5), rel=1e-6)


@given(st.floats(-3.0, -0.01), st.floats(0.01, 5.0), st.floats(0.05, 1.0))
def test_one_measurement_and_the_promised_slope_do_too(p, q, a):
    assert aim([(a, p * a + q * a * a)], p, 1.5) == pytest.approx(min(-p / (2 * q), 1.5), rel=1e-6)


@pytest.mark.parametrize(
    ("points", "slope", "wanted"),
    [
        ([(0.5, math.nan)], -1.0, 0.0),
        ([(0.5, math.inf)], -1.0, 0.0),
        ([(0.5, -0.1)], math.nan, 1.0),
        ([(0.5, 0.1)], math.nan, 0.0),
        ([(0.5, -0.9)], -1.0, 1.5),  # better than promised
        ([(0.2, 0.2), (0.4, 0.5)], -1.0, 0.0),  # uphill all the way
        ([(0.0, 0.0)], -1.0, 1.0),  # nothing applied yet
        ([], -1.0, 1.0),
    ],
)
def test_the_edges(points, slope, wanted):
    assert aim(points, slope, 1.5) == wanted


@pytest.mark.parametrize("since", [10, 20, 200])
def test_the_loss_curve_is_numpys_polynomial_fit_to_the_losses_since_the_change(since):
    rng, statistics = np.random.default_rng(0), Statistics()
    losses = np.r_[
        5.0 + rng.standard_normal(40), 2.0 - 0.01 * np.arange(since) + 0.1 * rng.standard_normal(since)
    ]
    for step, loss in enumerate(losses):
        statistics.observe(StepRecord(step, Phase.FULL, float(loss), 1.0, 0.1, 0.01))
    n = min(since, 32)
    slope, level = np.polyfit(np.arange(n) - (n - 1), losses[-n:], 1)
    assert loss_curve(statistics, since) == pytest.approx((level, slope))
    level, slope = loss_curve(statistics, 5)
    assert math.isnan(slope) and level == statistics.loss_ema(16)
