"""F42 in PyTorch: arrays of another library are refused, and writes into window means are noticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hybridcore import Engine, HybridConfig, Prediction
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.predictors.drift import Drift
from hybridcore_torch import TorchAdapter

pytestmark = pytest.mark.drops_plugins


class Writes(Drift):
    """Writes into the newest window mean."""

    def predict(self, history, horizon, xp):
        history.window_means[-1][0].zero_()
        return super().predict(history, horizon, xp)


class Foreign(Drift):
    """Gives NumPy arrays."""

    def predict(self, history, horizon, xp):
        found = super().predict(history, horizon, xp)
        return Prediction(tuple(np.asarray(d) for d in found.deltas), horizon, 1.0)


class Halves(Drift):
    """Gives float16."""

    def predict(self, history, horizon, xp):
        found = super().predict(history, horizon, xp)
        return Prediction(tuple(d.half() for d in found.deltas), horizon, 1.0)


def train(predictor):
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    adapter = TorchAdapter(
        model, torch.optim.SGD(model.parameters(), lr=0.05), lambda m, b: (m(b[0])[:, 0] - b[1]).square()
    )
    x = torch.randn(64, 6)
    batch = x, x @ torch.arange(6.0)
    controller = Fixed(FixedConfig(full_steps=5, correct_steps=5, horizon=4.0))
    engine = Engine(adapter, HybridConfig(), controller, {"drift": predictor}, probes=[batch])
    for _ in range(150):
        engine.step(batch)
    engine.finish()
    return engine, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("kind", "reason"), [(Writes, "window means"), (Foreign, "another kind"), (Halves, "another kind")]
)
def test_f42_it_is_dropped_and_the_rest_is_plain_training(kind, reason):
    engine, weights = train(kind())
    assert engine.summary()["plugins_dropped"] == ["predictor drift"]
    assert reason in engine.containment.failures[0].reason
    assert engine.counts.jumps == 0
    never = type("Never", (Drift,), {"ready": lambda self, history: False})()
    assert all(torch.equal(w, p) for w, p in zip(weights, train(never)[1], strict=True))


def test_f42_a_sound_predictor_jumps():
    engine, _ = train(Drift())
    assert engine.counts.jumps > 0 and not engine.containment.failures
