"""Multinomial logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from hybridcore_tensorflow.models.built import BuiltModel, as_tensors

__all__ = ["Softmax", "build_softmax"]


class Softmax(tf.Module):
    """One affine layer.

    Args:
        features: Inputs.
        classes: Logits.

    Example:
        >>> tuple(Softmax(64, 10)(tf.zeros((3, 64))).shape)
        (3, 10)
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.zeros((classes, features)))
        self.bias = tf.Variable(tf.zeros(classes))

    def __call__(self, inputs: Any) -> Any:
        """Logits (n, classes) of inputs (n, features)."""
        return tf.matmul(tf.cast(inputs, self.weight.dtype), self.weight, transpose_b=True) + self.bias


def _loss(model: Any, batch: Any) -> Any:
    """``-log p(y | x)`` per example, (n,)."""
    inputs, classes = as_tensors(batch)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(classes, model(inputs))


def _sums(model: Any, batch: Any) -> tuple[Any, ...]:
    losses = _loss(model, batch)
    return tf.reduce_sum(losses), tf.size(losses)


def build_softmax(shape: Mapping[str, Any]) -> BuiltModel:
    """Ten classes of 64 features; `shape` may hold other ``classes`` and ``features``."""
    model = Softmax(shape.get("features", 64), shape.get("classes", 10))
    return BuiltModel(model, _loss, _sums, lambda totals: {"loss": totals[0] / totals[1]})
