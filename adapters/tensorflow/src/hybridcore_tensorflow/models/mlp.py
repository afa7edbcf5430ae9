"""Multilayer perceptron with ReLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import tensorflow as tf

from hybridcore_tensorflow.models.built import BuiltModel, Dense, classification

__all__ = ["Mlp", "build_mlp"]


class Mlp(tf.Module):
    """Affine layers with ReLU between them.

    Args:
        widths: Sizes of input, hidden layers and output.

    Example:
        >>> tuple(Mlp((4, 8, 3))(tf.zeros((2, 4))).shape)
        (2, 3)
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = [Dense(a, b) for a, b in pairwise(widths)]

    def __call__(self, inputs: Any, training: bool = False) -> Any:
        """Logits (n, classes) of inputs (n, features)."""
        hidden = inputs
        for layer in self.layers[:-1]:
            hidden = tf.nn.relu(layer(hidden))
        return self.layers[-1](hidden)


def build_mlp(shape: Mapping[str, Any]) -> BuiltModel:
    """Classifier of ``shape["widths"]``."""
    return classification(Mlp(shape["widths"]))
