"""Normalisations with PyTorch's conventions."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

__all__ = ["BatchNorm", "LayerNorm", "StatisticsNorm"]


class LayerNorm(tf.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), epsilon 1e-5.

    Args:
        width: Size of the last axis.
        trainable: Whether scale and shift are trained.
    """

    def __init__(self, width: int, trainable: bool = True) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.ones((width,)), trainable=trainable)
        self.bias = tf.Variable(tf.zeros((width,)), trainable=trainable)

    def __call__(self, inputs: Any) -> Any:
        """Normalise inputs (..., width)."""
        mean, variance = tf.nn.moments(inputs, -1, keepdims=True)
        return (inputs - mean) * tf.math.rsqrt(variance + 1e-5) * self.weight + self.bias


class StatisticsNorm(keras.layers.BatchNormalization):
    """Batch normalisation without scale and shift of its own, whose moving variance is unbiased.

    Keras keeps the biased variance; PyTorch multiplies by ``n / (n - 1)`` before it enters the mean.

    Args:
        size: Channels, the last axis.
    """

    def __init__(self, size: int) -> None:
        super().__init__(momentum=0.9, epsilon=1e-5, center=False, scale=False)
        self.build((None, size))
        self.input_spec = None  # any number of axes

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise inputs (..., size) over all other axes."""
        if not training or not self.trainable:
            mean, variance = self.moving_mean.value, self.moving_variance.value
        else:
            mean = _mean(inputs)
            variance = _mean(tf.math.squared_difference(inputs, mean))
            count = tf.cast(tf.size(inputs) // inputs.shape[-1], inputs.dtype)
            keep = self.momentum
            unbiased = variance * count / tf.maximum(count - 1.0, 1.0)
            self.moving_mean.assign(keep * self.moving_mean.value + (1.0 - keep) * mean)
            self.moving_variance.assign(keep * self.moving_variance.value + (1.0 - keep) * unbiased)
        return (inputs - mean) * tf.math.rsqrt(variance + self.epsilon)


def _mean(values: Any) -> Any:
    """Mean over all axes but the last, one axis at a time.

    TensorFlow adds up one after the other in float32; 50,000 activations at once lose two more digits.
    """
    for axis in reversed(range(len(values.shape) - 1)):
        values = tf.reduce_mean(values, axis)
    return values


class BatchNorm(tf.Module):
    """Batch normalisation as PyTorch has it: momentum 0.1, epsilon 1e-5, unbiased moving variance.

    Args:
        size: Channels, the last axis.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.ones((size,)))
        self.bias = tf.Variable(tf.zeros((size,)))
        self.statistics = StatisticsNorm(size)

    def __call__(self, inputs: Any, training: bool) -> Any:
        """Normalise inputs (..., size) over all other axes."""
        return self.statistics(inputs, training=training) * self.weight + self.bias
