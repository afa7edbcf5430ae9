import math

import numpy as np
import pytest

from hybridcore.tasks import weights


@pytest.mark.parametrize(
    ("made", "fan_in", "shape"),
    [
        (lambda rng: weights.linear(rng, "x", 400, 300), 400, (300, 400)),
        (lambda rng: weights.convolution(rng, "x", 16, 128, 3), 144, (128, 16, 3, 3)),
    ],
)
def test_uniform_layers_fill_pytorchs_interval(made, fan_in, shape):
    layer = made(np.random.default_rng(0))
    bound = 1 / math.sqrt(fan_in)
    assert layer["x.weight"].shape == shape
    assert layer["x.bias"].shape == shape[:1]
    for array in layer.values():
        assert np.abs(array).max() <= bound
    assert np.abs(layer["x.weight"]).max() > 0.99 * bound
    assert layer["x.weight"].std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_glorot_layers_have_their_deviation():
    layers = weights.glorot_layers(np.random.default_rng(0), (100, 300, 1))
    assert layers["layers.0.weight"].std() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert not layers["layers.0.bias"].any()
    assert layers["layers.1.weight"].shape == (1, 300)


def test_weight_and_order_streams_differ():
    assert weights.weight_rng(0).random() != weights.weight_rng(1).random()
    assert weights.weight_rng(7).random() == weights.weight_rng(7).random()
