"""F58, F89: what the convolutions of `mnist-cnn` start from."""

import math

import numpy as np
import pytest

from hybridcore.tasks.mnist_cnn import MnistCnn
from hybridcore.tasks.weights import weight_rng

LAYERS = {"convolutions.0": (4, 1, 3, 3), "convolutions.1": (8, 4, 3, 3), "head": (10, 392)}


@pytest.mark.parametrize("seed", [0, 5])
def test_f89_only_the_head_has_a_bias_of_its_own(seed):
    """A bias before batch norm has no effect; drawn and dropped, it leaves the other numbers in place."""
    weights = MnistCnn(MnistCnn.Config(filters=4)).problem(seed).weights
    rng = weight_rng(seed)
    for name, shape in LAYERS.items():
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        weight, bias = (rng.uniform(-bound, bound, size) for size in (shape, shape[:1]))
        np.testing.assert_array_equal(weights[f"{name}.weight"], weight.astype(np.float32))
        if name == "head":
            np.testing.assert_array_equal(weights["head.bias"], bias.astype(np.float32))
        else:
            assert f"{name}.bias" not in weights
    assert len(weights) == 8
