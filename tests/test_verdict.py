from __future__ import annotations

import numpy as np
import pytest

from hybridcore.config import VerdictConfig
from hybridcore.verdict import Reference, judge, overfitted, rate_between, straightened

SPREAD = np.linspace(-0.5, 0.5, 11)
"""Examples differ in level; the mean of these offsets is zero."""


def line(slope, cost=100.0, level=2.0, spread=0.0):
    """A curve that falls by `slope` per cost unit on every example."""
    rate = -slope * np.ones(11) + spread * SPREAD
    return Reference(level + SPREAD, rate, cost)


@pytest.mark.parametrize("slope", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("steps", [1.0, 7.0, 20.0])
def test_f82_gain_and_credit_on_a_curve_of_known_slope(slope, steps):
    """A jump that saves `steps` steps ends as low, after 15 cost units, as the curve after 15 + steps."""
    reference = line(slope)
    achieved = 2.0 + SPREAD - slope * (15.0 + steps)
    verdict = judge(reference, achieved, 115.0, 50.0, VerdictConfig())
    assert verdict.kept
    assert verdict.gain == pytest.approx(slope * steps)
    assert verdict.error == pytest.approx(0.0, abs=1e-12)
    assert verdict.credit_steps == pytest.approx(steps)


def test_f82_credit_is_less_by_one_standard_error_of_the_paired_differences():
    noise = 0.02 * np.random.default_rng(0).standard_normal(11)
    noise -= noise.mean()
    verdict = judge(line(0.01), 2.0 + SPREAD - 0.01 * 25.0 + noise, 115.0, 50.0, VerdictConfig())
    error = np.sqrt((noise**2).sum() / 10) / np.sqrt(11)
    assert verdict.gain == pytest.approx(0.1)
    assert verdict.error == pytest.approx(error)
    assert verdict.credit_steps == pytest.approx((0.1 - error) / 0.01)


def test_f82_credit_is_bounded_by_the_steps_predicted():
    verdict = judge(line(0.01), 2.0 + SPREAD - 0.01 * 100.0, 115.0, 30.0, VerdictConfig())
    assert verdict.credit_steps == 30.0


def test_f82_a_jump_that_costs_its_steps_and_gives_nothing_fails():
    """Weights that stand still for 15 cost units lie above the curve, which fell meanwhile."""
    verdict = judge(line(0.01), 2.0 + SPREAD, 115.0, 50.0, VerdictConfig())
    assert not verdict.kept
    assert verdict.gain == pytest.approx(-0.15)
    assert verdict.credit_steps == 0.0


@pytest.mark.parametrize("z", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("times", "kept"), [(0.99, True), (1.01, False)])
def test_f82_a_loss_within_the_noise_is_kept_without_credit(z, times, kept):
    noise = np.random.default_rng(1).standard_normal(11)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    error = 0.03 / np.sqrt(11)
    flat = line(0.0)
    achieved = 2.0 + SPREAD + 0.03 * noise + times * z * error
    verdict = judge(flat, achieved, 115.0, 50.0, VerdictConfig(confidence_z=z))
    assert verdict.error == pytest.approx(error)
    assert verdict.kept is kept
    assert verdict.credit_steps == 0.0


@pytest.mark.parametrize("z", [0.5, 3.0])
@pytest.mark.parametrize(("times", "kept"), [(1.01, True), (0.99, False)])
def test_f82_a_trial_behind_the_curve_is_kept_where_its_loss_fell_clearly(z, times, kept):
    """To restore would give back the fall: 0.01 a step asked for 0.15, and it is the whole noise behind."""
    noise = np.random.default_rng(1).standard_normal(11)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    error = 0.001 / np.sqrt(11)
    fall = times * z * error
    verdict = judge(
        line(0.01),
        2.0 + SPREAD - fall + 0.001 * noise,
        115.0,
        50.0,
        VerdictConfig(confidence_z=z, least_progress=0.0),
    )
    assert verdict.kept is kept
    assert verdict.credit_steps == 0.0
    assert verdict.behind_steps == pytest.approx((0.15 - fall) / 0.01 if kept else 0.0)


@pytest.mark.parametrize("least", [0.3, 0.7])
@pytest.mark.parametrize(("more", "kept"), [(0.01, True), (-0.01, False)])
def test_f82_it_fails_where_too_little_was_made_of_its_steps(least, more, kept):
    """The curve asked for 0.01 in each of 15 steps."""
    noise = 0.001 * np.random.default_rng(1).standard_normal(11)
    achieved = 2.0 + SPREAD + (noise - noise.mean()) - (least + more) * 0.15
    verdict = judge(line(0.01), achieved, 115.0, 50.0, VerdictConfig(least_progress=least))
    assert verdict.falling
    assert verdict.kept is kept


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_f82_a_non_finite_loss_fails(bad):
    achieved = np.full(11, -5.0)
    achieved[3] = bad
    verdict = judge(line(0.01), achieved, 115.0, 50.0, VerdictConfig(confidence_z=1e9))
    assert not verdict.kept
    assert verdict.credit_steps == 0.0
    assert "non-finite" in verdict.reason


def test_f82_a_curve_that_rises_by_noise_is_no_excuse():
    """The bar is then the level before the jump, not the rise continued."""
    rising = Reference(2.0 + SPREAD, 0.01 * np.ones(11), 100.0)
    assert rising.slope == 0.0
    np.testing.assert_array_equal(rising.at(150.0), 2.0 + SPREAD)
    assert not judge(rising, 2.0 + SPREAD + 0.1, 115.0, 50.0, VerdictConfig()).kept


def test_f82_examples_may_fall_at_different_rates():
    reference = line(0.01, spread=0.02)
    np.testing.assert_allclose(reference.at(110.0), 2.0 + SPREAD + 10.0 * (-0.01 + 0.02 * SPREAD))
    assert reference.slope == pytest.approx(-0.01)


def test_f82_without_a_known_slope_any_sure_gain_counts_as_predicted():
    flat = Reference(2.0 + SPREAD, None, 100.0)
    assert judge(flat, 1.9 + SPREAD, 130.0, 12.0, VerdictConfig()).credit_steps == 12.0
    assert not judge(flat, 2.1 + SPREAD, 130.0, 12.0, VerdictConfig()).kept


@pytest.mark.parametrize("power", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("factor", [1.5, 4.0])
def test_f82_a_power_of_the_steps_is_continued_as_it_is(power, factor):
    """Two points of 3 t^-p give its slope and all later ones; examples keep their own share of the fall."""
    at = lambda t: 3.0 * t**-power  # noqa: E731
    share = 1.0 + SPREAD
    rate = rate_between(at(8.0) * share, at(20.0) * share, 12.0, 20.0)
    assert rate.mean() == pytest.approx(-power * at(20.0) / 20.0)
    reference = Reference(at(20.0) * share, rate, 100.0, age=20.0)
    np.testing.assert_allclose(reference.at(100.0 + 20.0 * (factor - 1.0)), at(20.0 * factor) * share)


def test_f82_losses_that_are_not_positive_go_straight_over_the_logarithm():
    rate = rate_between(SPREAD, SPREAD - 1.0, 10.0, 20.0)
    np.testing.assert_allclose(rate, -1.0 / (20.0 * np.log(2.0)))
    reference = Reference(SPREAD - 1.0, rate, 100.0, age=20.0)
    np.testing.assert_allclose(reference.at(120.0), SPREAD - 2.0)


@pytest.mark.parametrize(("ahead", "share"), [(5.0, 0.25), (20.0, 1.0), (60.0, 1.0)])
@pytest.mark.parametrize(("times", "level"), [(0.99, True), (1.01, False)])
def test_f82_the_further_a_curve_is_continued_the_less_it_is_trusted(ahead, share, times, level):
    """The fall to come may be anything up to what is asked: its deviation is that over the root of twelve."""
    reference = Reference(2.0 + SPREAD, -0.05 * np.ones(11), 100.0, age=20.0)
    expected = reference.at(100.0 + ahead)
    asked = 2.0 - expected.mean()
    assert reference.doubt(100.0 + ahead) == pytest.approx(share * asked / np.sqrt(12.0))
    short = times * 2.0 * share * asked / np.sqrt(12.0)
    verdict = judge(reference, expected + short, 100.0 + ahead, 50.0, VerdictConfig(least_progress=0.0))
    assert verdict.kept
    assert (verdict.behind_steps == 0.0) is level


@pytest.mark.parametrize("steps", [-5.0, 3.0, 40.0])
def test_f82_a_curve_is_continued_straight_over_the_logarithm_of_its_steps(steps):
    """Its slope falls like one over the steps: compared with the integral by the midpoint rule."""
    age = 12.0
    t = age + (np.arange(100_000) + 0.5) / 100_000 * steps
    assert straightened(steps, age) == pytest.approx(float(np.mean(age / t)) * steps, rel=1e-6)


def test_f82_late_in_a_run_nothing_bends():
    assert straightened(20.0, 1e6) == pytest.approx(20.0, rel=1e-4)
    assert straightened(20.0, float("inf")) == 20.0


@pytest.mark.parametrize(("gap", "known"), [(0.0, False), (0.05, False), (0.5, True), (-0.5, False)])
def test_f82_overfitting_is_a_clear_gap_between_held_out_and_training_losses(gap, known):
    random = np.random.default_rng(0)
    held_out, trained = 1.0 + gap + random.standard_normal(256), 1.0 + 0.1 * random.standard_normal(20)
    assert overfitted(held_out, trained, VerdictConfig(confidence_z=2.0)) == known
    assert not overfitted(held_out, trained[:1], VerdictConfig())
