"""The loss-level corrector against NumPy's least squares (F27, F30)."""

from __future__ import annotations

import numpy as np
import pytest

from hybridcore.correction.loss_level import LossLevel, best_scale
from hybridcore.correction.store import ResidualStore
from hybridcore.layout import ParamLayout
from hybridcore.protocols import Residual, Situation


def taught(pairs, **options):
    corrector = LossLevel(LossLevel.Config(similar=0, **options))
    corrector.reset(ParamLayout.plan([]), ResidualStore())
    for x, y in pairs:
        corrector.observe(Residual(Situation(0, np.zeros(28), "drift", 9.0, 2.0, 2.0 * x), 2.0 * y))
    return corrector


def expected(corrector, x, loss=2.0):
    return corrector.expected(Situation(0, np.zeros(28), "drift", 9.0, loss, loss * x)) / loss


def test_f30_recursive_least_squares_equals_weighted_ridge_regression():
    rng = np.random.default_rng(0)
    x = -rng.uniform(0.0, 0.5, 30)
    y = 0.02 + 0.4 * x + 0.01 * rng.standard_normal(30)
    corrector = taught(zip(x, y, strict=True), forgetting=0.9, prior=2.0)
    w = 0.9 ** np.arange(29, -1, -1)
    spread = (w @ x**2) / max(w.sum(), 1.0)
    belief = np.sqrt(2.0) * np.diag([1.0, spread**0.5])
    rows = np.vstack([np.c_[np.ones(30), x] * np.sqrt(w)[:, None], belief])
    wanted = np.r_[(y - x) * np.sqrt(w), 0.0, 0.0]
    (a, b), *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    for at in (-0.3, 0.1):
        assert expected(corrector, at) == pytest.approx(a + (1.0 + b) * at)


def test_f30_the_unit_of_the_loss_does_not_matter():
    corrector = taught([(-0.2, -0.1)] * 5)
    assert expected(corrector, -0.2, 1e-3) == pytest.approx(expected(corrector, -0.2, 1e3))


@pytest.mark.parametrize(("p", "e"), [(-1.0, -0.8), (-1.0, -0.5), (-0.3, 0.1), (-2.0, 1.0)])
def test_the_scale_lies_at_the_minimum_of_the_parabola(p, e):
    grid = np.linspace(0.25, 4.0, 30_001)
    lowest = grid[np.argmin(p * grid + (e - p) * grid**2)]
    assert best_scale(p, e) == pytest.approx(lowest, abs=2e-4)
