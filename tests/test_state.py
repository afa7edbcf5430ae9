from __future__ import annotations

import math

import numpy as np
import pytest
from engine_lab import bowl, build, clouds, configure, drive

from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.protocols import OptimizerSpec, Phase, StepRecord
from hybridcore.state import FEATURE_NAMES, Statistics


def record(step, loss, grad_norm=1.0, rate=0.1, seconds=0.01):
    return StepRecord(step, Phase.FULL, loss, grad_norm, rate, seconds)


def fed(losses, norms=None, rates=None):
    stats = Statistics()
    for i, loss in enumerate(losses):
        norm = 1.0 if norms is None else norms[i]
        stats.observe(record(i + 1, loss, norm, 0.1 if rates is None else rates[i]))
    return stats


def features(stats, moments=None, straightness=0.5, phase=Phase.FULL, phase_progress=0.5, progress=0.5):
    return stats.features(
        phase=phase,
        phase_progress=phase_progress,
        progress=progress,
        straightness=straightness,
        moments=moments or {},
    )


@pytest.mark.parametrize("memory", [4, 16, 64])
def test_f10_loss_averages_have_rates_a_quarter_a_sixteenth_a_sixty_fourth(memory):
    losses = np.random.default_rng(0).standard_normal(200)
    alpha = 1.0 / memory
    # Closed form: weight (1 - a)^n on the first loss, a (1 - a)^(n - i) on the i-th.
    n = len(losses) - 1
    weights = alpha * (1 - alpha) ** (n - np.arange(len(losses)))
    weights[0] = (1 - alpha) ** n
    assert weights.sum() == pytest.approx(1.0)
    assert fed(losses).loss_ema(memory) == pytest.approx(float(weights @ losses), abs=1e-12)


def test_f10_there_are_exactly_three_rates():
    stats = fed([1.0, 2.0])
    with pytest.raises(ValueError):
        stats.loss_ema(8)
    assert math.isnan(Statistics().loss_ema(16))


def test_rings_hold_the_last_256_losses_and_64_norms():
    losses = np.arange(300.0)
    stats = fed(losses, losses)
    assert list(stats.losses) == list(losses[-256:])
    assert list(stats.grad_norms) == list(losses[-64:])


@pytest.fixture(scope="module")
def real_run():
    """Features after every real step of a logistic run with Adam and a cosine schedule."""
    adapter, batches, probes = clouds(
        optimizer=OptimizerSpec("adam", 0.01, schedule="cosine", total_steps=200, warmup_steps=10)
    )
    controller = Fixed(FixedConfig(horizon=4.0, full_steps=24, correct_steps=4))
    engine, recorder = build(adapter, configure(), controller, probes=probes)
    engine.history.needs |= {"straightness"}
    rows = []
    for step in range(1, 201):
        engine.step(next(batches))
        machine = engine.machine
        rows.append(
            engine.statistics.features(
                phase=machine.phase,
                phase_progress=machine.done / machine.length,
                progress=step / 200,
                straightness=engine.history.straightness(),
                moments=adapter.moments(),
            )
        )
    assert recorder.named("jump")
    return np.array(rows)


@pytest.mark.parametrize("name", FEATURE_NAMES)
def test_f9_every_feature_varies_in_a_real_run(real_run, name):
    column = real_run[:, FEATURE_NAMES.index(name)]
    if name == "m_mean":
        # The gradients of a softmax sum to zero over the classes, so this mean is zero by symmetry.
        assert np.abs(column).max() < 1e-12
        return
    assert np.ptp(column) > 0.01
    assert len(np.unique(column.round(9))) > 2


def test_f9_the_first_moment_mean_is_live_where_gradients_have_a_mean():
    adapter = bowl(noise=0.1, optimizer=OptimizerSpec("adam", 0.01))
    engine, _ = build(adapter)
    seen = []
    for _ in range(30):
        drive(engine, 1)
        seen.append(features(engine.statistics, adapter.moments())[FEATURE_NAMES.index("m_mean")])
    assert np.ptp(seen) > 0.02


def test_f9_every_feature_is_finite_and_of_order_one(real_run):
    assert real_run.shape == (200, len(FEATURE_NAMES))
    assert np.isfinite(real_run).all()
    assert np.abs(real_run).max() <= 2.0


def test_f9_names_are_distinct_and_cover_the_reference_table():
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES) >= 26
    assert {"learning_rate_log10", "phase", "loss_ema_64", "v_std", "grad_norm_noise"} <= set(FEATURE_NAMES)


def test_f9_features_do_not_know_the_scale_of_the_loss():
    rng = np.random.default_rng(1)
    losses = 2.0 * np.exp(-np.arange(80) / 40) + 0.1 * rng.random(80)
    norms = 1.0 + rng.random(80)
    moments = {"m_mean": 0.02, "m_std": 0.3, "v_mean": 0.1, "v_std": 0.2}
    k = 1000.0
    scaled = {key: value * (k if key[0] == "m" else k * k) for key, value in moments.items()}
    one = features(fed(losses, norms), moments)
    many = features(fed(k * losses, k * norms), scaled)
    np.testing.assert_allclose(many, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "losses",
    [[0.0] * 40, [1.0] * 40, [1e-300] * 40, [1e140, 1.0] * 20, [-1.0, 1.0] * 20, [5.0], [1e8] + [0.0] * 39],
    ids=["zero", "constant", "tiny", "huge", "symmetric", "one", "vanishing"],
)
@pytest.mark.parametrize("norm", [0.0, 1.0, 1e150, math.nan])
def test_f9_features_stay_finite_on_degenerate_curves(losses, norm):
    values = features(fed(losses, [norm] * len(losses)), straightness=math.nan)
    assert np.isfinite(values).all()
    assert np.abs(values).max() <= 2.0


def test_f9_feature_values_against_numpy():
    rng = np.random.default_rng(2)
    losses, norms = 1.0 + rng.random(50), 1.0 + rng.random(50)
    rates = np.linspace(0.1, 0.05, 50)
    got = dict(zip(FEATURE_NAMES, features(fed(losses, norms, rates)), strict=True))
    squash = lambda v: np.tanh(v / 3.0)  # noqa: E731
    z = lambda v: squash((v - losses.mean()) / losses.std())  # noqa: E731
    assert got["loss"] == pytest.approx(z(losses[-1]))
    assert got["loss_min"] == pytest.approx(z(losses.min()))
    assert got["loss_change"] == pytest.approx(
        squash((losses[-16:].mean() - losses[-32:-16].mean()) / losses.std())
    )
    assert got["loss_ratio"] == pytest.approx(
        squash(3.0 * (losses[-16:].mean() / losses[-32:-16].mean() - 1.0))
    )
    assert got["grad_norm"] == pytest.approx(squash((norms[-1] - norms.mean()) / norms.std()))
    assert got["grad_norm_min"] == pytest.approx(norms.min() / norms.mean())
    assert got["learning_rate_over_peak"] == pytest.approx(0.5)
    assert got["learning_rate_log10"] == pytest.approx(squash(np.log10(0.05) / 2 + 1.5))


@pytest.mark.parametrize(
    ("rates", "rising"),
    [
        ([0.1] * 50, []),
        ([min(1.0, 0.1 * (step + 1)) for step in range(30)], range(2, 19)),
        ([0.1] * 20 + [0.2] * 20, []),
        ([0.5, 0.4, 0.5, 0.6, 0.7, 0.7, 0.7], [5]),
    ],
    ids=["constant", "warm-up", "one step up", "up after a fall"],
)
def test_f86_a_rate_rises_while_it_does_and_for_as_long_again(rates, rising):
    stats, found = Statistics(), []
    for step, rate in enumerate(rates, 1):
        stats.observe(record(step, 1.0, rate=rate))
        if stats.rising:
            found.append(step)
    assert found == list(rising)


def test_statistics_survive_a_round_trip():
    stats = fed(np.random.default_rng(3).random(70), np.random.default_rng(4).random(70))
    again = Statistics()
    again.load_state_dict(stats.state_dict())
    for each in (stats, again):
        each.observe(record(71, 0.25, 0.5))
    np.testing.assert_array_equal(features(stats), features(again))
    assert stats.loss_deviation == again.loss_deviation
    assert stats.state_dict() == again.state_dict()


def test_a_kept_state_is_not_changed_by_later_steps():
    stats = fed([1.0, 2.0, 3.0])
    kept = stats.state_dict()
    stats.observe(record(4, 9.0))
    assert kept["losses"] == [1.0, 2.0, 3.0]
    assert kept["steps"] == 3


def test_f82_the_loss_deviation_is_a_sixteenth_average_of_distances_from_the_level_before():
    losses = np.random.default_rng(5).standard_normal(60)
    # Level before step n in closed form, then the same average of the distances, started at zero.
    weigh = lambda n: np.r_[(15 / 16) ** (n - 1), (15 / 16) ** np.arange(n - 2, -1, -1.0) / 16]  # noqa: E731
    away = np.array([0.0] + [abs(losses[n] - weigh(n) @ losses[:n]) for n in range(1, 60)])
    assert fed(losses).loss_deviation == pytest.approx(float(weigh(60) @ away), rel=1e-9)


def test_seconds_per_step_follow_the_recent_steps():
    stats = Statistics()
    for step in range(200):
        stats.observe(record(step + 1, 1.0, seconds=9.0 if step < 50 else 2.0))
    assert stats.seconds_per_step == pytest.approx(2.0 + 7.0 * 0.95**150)
