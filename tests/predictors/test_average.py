from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from engine_lab import Scripted, bowl, build, configure, drive
from trajectory_lab import change, moved, recursion, remember, window_means

from hybridcore.predictors.average import Average
from hybridcore.protocols import OptimizerSpec


def make(**options):
    return Average(Average.Config(**options))


@pytest.mark.parametrize(("share", "count"), [(0.05, 1), (0.2, 2), (0.4, 4), (1.0, 5)])
def test_f85_it_lands_on_the_mean_of_as_many_windows_as_the_share_allows(share, count):
    path = recursion(40)
    got = path[-1] + moved(make(share=share), path)
    np.testing.assert_allclose(got, window_means(path)[-count:].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("step", [-1.0, 0.5, 2.0])
def test_f85_the_step_is_signed(step):
    path = recursion(40)
    np.testing.assert_allclose(moved(make(step=step), path), step * moved(make(), path), atol=1e-6)


def test_f85_it_waits_for_all_windows_that_the_mean_covers():
    predictor = make(share=1.0)
    ready = [predictor.ready(remember(recursion(n), predictor)) for n in (7, 8, 12, 40)]
    assert ready == [True, True, True, True]
    history = remember(recursion(8), predictor)
    predictor._step = 40
    assert not predictor.ready(history)


@pytest.mark.parametrize("options", [{}, {"share": 0.5}, {"step": -0.5}])
def test_f85_on_a_straight_line_its_horizon_is_how_far_it_goes_back(options):
    line = np.outer(np.arange(43), np.linspace(-0.02, 0.03, 12))
    predictor = make(**options)
    history = remember(line, predictor)
    for asked in (-5.0, 1.0, 80.0):
        got = predictor.predict(history, asked, xp)
        np.testing.assert_allclose(change(got), got.horizon * (line[1] - line[0]), atol=1e-5)
        assert got.horizon * predictor.config.step < 0.0


def test_f85_around_the_optimum_of_a_noisy_quadratic_the_mean_is_better():
    """Iterates hover; the mean over many correlation times lowers the loss that noise causes."""
    adapter = bowl(noise=1.0, condition=2.0, optimizer=OptimizerSpec("sgd", 0.2))
    predictor = make(share=1.0, windows=10)
    engine, _ = build(adapter, configure(history={"window": 20}), Scripted(), predictor)
    drive(engine, 1200)
    before = float(np.mean(adapter.probe_loss(None)))
    got = predictor.predict(engine.history, 0.0, xp)
    adapter.apply_delta(got.deltas, got.scale)
    assert float(np.mean(adapter.probe_loss(None))) < 0.3 * before
