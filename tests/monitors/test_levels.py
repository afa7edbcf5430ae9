"""One test per signal and level of the table of divergence signals (F32, F33, F34)."""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest

from hybridcore.monitors.gradient_norm import GradientNorm
from hybridcore.monitors.loss_deviation import LossDeviation
from hybridcore.monitors.non_finite import NonFinite
from hybridcore.monitors.oscillation import Oscillation
from hybridcore.monitors.plateau import Plateau
from hybridcore.monitors.prediction_error import PredictionError
from hybridcore.protocols import Phase
from hybridcore.testing.monitor_contract import records


def last(monitor, run):
    """Level of the check after the last record, the ones before being checked too."""
    found = None
    for record in run:
        monitor.observe(record)
        found = monitor.check(record)
    return found.level.word if found is not None else None


def gaussian(count=4000, seed=0):
    return 10.0 + np.random.default_rng(seed).standard_normal(count)


@pytest.mark.parametrize(
    ("rise", "level"),
    [(1.0, None), (2.5, "caution"), (4.0, "warning"), (5.0, "warning"), (8.0, "critical"), (-50.0, None)],
)
def test_f32_f33_loss_deviation_in_standard_deviations(rise, level):
    """On losses of mean 10 and deviation 1, a rise by z deviations has the score z; a fall has none."""
    monitor = LossDeviation(LossDeviation.Config(persistence=3, memory=1000, min_rise=0.0))
    assert last(monitor, records([*gaussian(), *[10.0 + rise] * 3])) == level


def test_f32_loss_deviation_scores_are_standard_deviations():
    monitor = LossDeviation(LossDeviation.Config(persistence=1, memory=2000, min_rise=0.0))
    run = records([*gaussian(20000), 15.0])
    for record in run[:-1]:
        monitor.observe(record)
        monitor.check(record)
    monitor.observe(run[-1])
    assert monitor.check(run[-1]).value == pytest.approx(5.0, rel=0.06)


def test_f32_one_hard_batch_is_no_divergence_but_an_explosion_is():
    calm = list(gaussian(500))
    assert last(LossDeviation(), records([*calm, 20.0])) is None
    assert last(LossDeviation(), records([*calm, 10.0 + 100 * (max(calm) - min(calm))])) == "critical"


def ringing(height, count=150):
    """Losses near one with a spike that rings and dies away, as of Adam at the edge of stability."""
    n = np.arange(count) - 60
    hump = np.sin(np.pi * n / 8.0) ** 2 * np.exp(-np.maximum(n, 0) / 12.0)
    return 1.0 + np.where(n >= 0, height * hump, 0.0)


def levels(monitor, losses, phase=Phase.FULL):
    """Levels of the checks after every tenth loss."""
    found = []
    for number, record in enumerate(records(losses), 1):
        monitor.observe(attrs.evolve(record, phase=phase))
        if number % 10 == 0 and (signal := monitor.check(record)) is not None:
            found.append(signal.level.word)
    return found


GROWING = (0.15, 0.25, 0.4, 0.7, 1.2, 2.0, 2.0, 2.0)
"""Heights of spikes, each less than twice the one before."""


def test_f32_spikes_that_come_down_by_themselves_are_the_runs_own():
    monitor, alone = LossDeviation(), LossDeviation()
    found = [levels(monitor, ringing(height)) for height in GROWING]
    assert all("critical" not in words for words in found) and found[-3:] == [[], [], []]
    assert "critical" in levels(alone, np.concatenate([ringing(0.0), ringing(2.0)])), "alone it is news"
    assert "critical" in levels(monitor, ringing(20.0)), "one that is far higher is news"


def test_f32_a_rise_that_stays_is_a_signal_however_high_the_spikes_were():
    monitor = LossDeviation()
    for height in GROWING:
        levels(monitor, ringing(height))
    assert "critical" in levels(monitor, [1.0] * 20 + [2.0] * 40)


def test_f32_what_came_down_after_a_jump_teaches_nothing():
    monitor = LossDeviation()
    for height in GROWING[:-1]:
        levels(monitor, ringing(height), Phase.CORRECT)
    assert "critical" in levels(monitor, ringing(2.0))


def test_f32_a_rise_that_the_average_caught_up_with_did_not_come_down():
    monitor = LossDeviation()
    assert "critical" in levels(monitor, [1.0] * 100 + [1.5] * 400)
    assert "critical" in levels(monitor, [*[2.2] * 8, *[1.5] * 22]), "it is no spike of a kind that passed"


def test_f32_loss_deviation_needs_a_rise_by_a_share():
    tiny = [1.0 + 1e-9 * (-1) ** i for i in range(200)]
    assert last(LossDeviation(), records([*tiny, *[1.01] * 5])) is None
    assert (
        last(LossDeviation(LossDeviation.Config(min_rise=0.001)), records([*tiny, *[1.01] * 5])) == "critical"
    )


@pytest.mark.parametrize("curve", ["steep", "stairs", "falling noise"])
def test_f33_improvement_never_alarms(curve):
    n = np.arange(2000)
    losses = {
        "steep": 1e6 * 0.9**n,
        "stairs": 2.0 ** -(n // 100),
        "falling noise": (1 + 0.3 * np.random.default_rng(0).random(2000)) * 0.995**n,
    }[curve]
    monitor = LossDeviation()
    for record in records(losses):
        monitor.observe(record)
        assert monitor.check(record) is None


@pytest.mark.parametrize(
    ("norms", "level"),
    [
        ([9.0, 9.5], None),
        ([11.0], None),
        ([11.0, 12.0], "warning"),
        ([101.0], "critical"),
        ([0.02] * 5, None),
        ([0.009] * 4, None),
        ([0.009, 0.008, 0.007, 0.006, 0.005], "warning"),
        ([0.0] * 5, "warning"),
    ],
)
def test_f32_gradient_norm_over_a_baseline_of_one(norms, level):
    usual = [0.9, 1.0, 1.1] * 30
    run = records([1.0] * (len(usual) + len(norms)), [*usual, *norms])
    monitor = GradientNorm(GradientNorm.Config(exploding=10.0, vanishing=0.01))
    # The peak of the calm run is 1.1, so that the baseline is its median.
    assert last(monitor, run) == level


def test_f32_a_gradient_that_vanishes_with_its_loss_is_an_optimum():
    usual = [0.9, 1.0, 1.1] * 30
    gone = [0.009, 0.008, 0.007, 0.006, 0.005]
    run = records([1.0] * 90 + [0.0001] * 5, [*usual, *gone])
    assert last(GradientNorm(), run) is None


@pytest.mark.parametrize(("loss", "level"), [(0.99, None), (1.01, "warning")])
def test_f32_a_gradient_that_vanishes_with_an_oscillation_is_none_that_died(loss, level):
    """A smaller learning rate takes a hundredfold of the gradient away, and hardly any of the loss."""
    run = records([1.0] * 90 + [loss] * 5, [*[0.9, 1.0, 1.1] * 30, *[0.009, 0.008, 0.007, 0.006, 0.005]])
    assert last(GradientNorm(), run) == level


@pytest.mark.parametrize("before", range(90, 106))
def test_f32_at_an_optimum_reached_in_one_step_nothing_has_died(before):
    """A Gauss-Newton jump onto the optimum: whenever the window's median comes down, the loss's does too."""
    monitor, found = GradientNorm(), []
    norms = [*([0.9, 1.0, 1.1] * 40)[:before], *[1e-5, 2e-5, 3e-5] * 100]
    run = records([1.0] * before + [0.004] * 300, norms)
    for number, record in enumerate(run, 1):
        monitor.observe(record)
        found.append(monitor.check(record) if number % 10 == 0 else None)
    assert not any(found)


@pytest.mark.parametrize(("loss", "level"), [(2.2, "caution"), (2.3, "warning"), (2.6, "warning")])
def test_f32_gradients_that_grow_where_a_run_leaves_a_plateau_are_no_explosion(loss, level):
    """LeNet with batches of four: gradients grow twentyfold within a hundred steps, and the loss falls."""
    run = records([2.3] * 90 + [loss] * 20, [*[0.45, 0.5, 0.55] * 30, *[6.0, 7.0] * 10])
    assert last(GradientNorm(), run) == level


def test_f32_a_norm_that_is_repeated_is_one_measurement():
    run = records([1.0] * 98, [*[0.9, 1.0, 1.1] * 30, *[11.0] * 8])
    assert last(GradientNorm(), run) is None


def test_f32_after_a_run_with_large_gradients_small_ones_may_grow_again():
    run = records([1.0] * 402, [*[50.0, 51.0] * 50, *[0.1, 0.11] * 150, 5.0, 6.0])
    assert last(GradientNorm(), run) is None


@pytest.mark.parametrize(
    ("loss", "norm", "level"),
    [
        (math.nan, 1.0, "critical"),
        (math.inf, 1.0, "critical"),
        (-math.inf, 1.0, "critical"),
        (1.0, math.inf, "critical"),
        (1.0, math.nan, None),
        (1e300, 1e300, None),
    ],
)
def test_f32_non_finite(loss, norm, level):
    assert last(NonFinite(), records([loss], [norm])) == level


@pytest.mark.parametrize(
    ("after", "level"),
    [([1.0] * 8, None), ([1.1] * 8, None), ([1.3] * 8, "caution"), ([1.6] * 8, "warning"), ([0.1] * 8, None)],
)
def test_f32_f34_prediction_error(after, level):
    """Accurate and better than promised never raise; bad does."""
    assert last(PredictionError(), [*records([1.0] * 20), *records(after, expected=1.0)]) == level


def test_f34_noise_around_the_promise_is_no_error():
    rng = np.random.default_rng(0)
    for _ in range(200):
        monitor = PredictionError()
        run = records(2.0 + 0.3 * rng.standard_normal(20), expected=2.0)
        assert last(monitor, run) is None


def test_f34_without_a_promise_nothing_is_judged():
    assert last(PredictionError(), records([1.0] * 20 + [9.0] * 20)) is None


@pytest.mark.parametrize(
    ("share", "level"), [(0.5, None), (0.6, None), (0.75, "caution"), (0.9, "caution"), (1.0, "warning")]
)
def test_f32_oscillation_by_share_of_sign_changes(share, level):
    rng = np.random.default_rng(0)
    side, losses = 1.0, []
    for changes in rng.permutation(np.arange(100) < round(100 * share)):
        side = -side if changes else side
        losses.append(2.0 + side + 0.01 * rng.random())
    monitor = Oscillation(Oscillation.Config(window=100))
    assert last(monitor, records([2.0, 2.0, *losses])) == level


def test_f32_a_small_oscillation_is_none():
    losses = 2.0 + 0.1 * (-1.0) ** np.arange(200)
    assert last(Oscillation(), records(losses)) is None
    assert last(Oscillation(Oscillation.Config(amplitude=0.01)), records(losses)) == "warning"


@pytest.mark.parametrize(("fall", "level"), [(0.0, "caution"), (0.004, "caution"), (0.02, None), (0.5, None)])
def test_f32_plateau_by_the_fall_from_half_to_half(fall, level):
    assert last(Plateau(), records([1.0] * 100 + [1.0 - fall] * 100)) == level
    assert last(Plateau(), records([1.0] * 199)) is None
