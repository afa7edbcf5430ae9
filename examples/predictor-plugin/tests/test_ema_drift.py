"""The contract of every predictor, and the formula of this one against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import numpy as xp

from hybridcore.config import HistoryConfig
from hybridcore.testing import PredictorContract, synthetic_history
from hybridcore.testing.trajectories import curve, layout_of_two_buckets
from hybridcore_example_predictor.ema_drift import EmaDrift, EmaDriftConfig


class TestEmaDrift(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> EmaDrift:
        return EmaDrift()


class TestLongMemory(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> EmaDrift:
        return EmaDrift(EmaDriftConfig(decay=0.9))


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_change_is_the_weighted_mean_of_displacements(decay: float) -> None:
    layout = layout_of_two_buckets()
    path = np.asarray(curve(layout.total, 20), dtype=np.float64)
    history = synthetic_history(
        xp, layout, curve(layout.total, 20), config=HistoryConfig(window=5, windows=4), needs=EmaDrift.needs
    )
    means = path[1:].reshape(4, 5, layout.total).mean(axis=1)
    newest_first = np.diff(means, axis=0)[::-1]
    velocity = np.average(newest_first, axis=0, weights=[1.0, decay, decay**2]) / 5
    prediction = EmaDrift(EmaDriftConfig(decay=decay)).predict(history, 8.0, xp)
    got = np.concatenate(prediction.deltas) * prediction.scale
    np.testing.assert_allclose(got, 8.0 * velocity, rtol=1e-4, atol=1e-7)
