from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
from engine_lab import Scripted, bowl, build, configure, drive

from hybridcore.predictors.last_update import LastUpdate


@pytest.mark.parametrize("horizon", [1.0, 12.5, -3.0])
def test_f85_it_repeats_the_last_step(horizon):
    adapter = bowl()
    predictor = LastUpdate()
    engine, _ = build(adapter, configure(), Scripted(), predictor)
    assert not predictor.ready(engine.history)
    drive(engine, 6)
    before = adapter.params["w"].copy()
    drive(engine, 1)
    assert predictor.ready(engine.history)
    got = predictor.predict(engine.history, horizon, xp)
    np.testing.assert_allclose(
        got.scale * got.deltas[0],
        horizon * (adapter.params["w"] - before),
        rtol=1e-3,
        atol=1e-6 * abs(horizon),
    )
    assert (got.horizon, got.confidence) == (horizon, 1.0)


def test_f85_on_a_quadratic_it_is_a_longer_step_along_the_same_gradient():
    """h last updates of SGD with rate a are one gradient step of rate h a, taken where the last began."""
    adapter = bowl()
    engine, _ = build(adapter, configure(), Scripted(), LastUpdate())
    drive(engine, 4)
    gradient = adapter.curvature * (adapter.params["w"] - adapter.optimum)
    drive(engine, 1)
    got = LastUpdate().predict(engine.history, 30.0, xp)
    np.testing.assert_allclose(got.scale * got.deltas[0], -30.0 * 0.01 * gradient, rtol=1e-3, atol=1e-4)
