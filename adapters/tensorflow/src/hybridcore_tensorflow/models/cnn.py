"""Small convolutional classifier with batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from hybridcore_tensorflow.models.built import BuiltModel, Dense, classification
from hybridcore_tensorflow.models.norm import BatchNorm

__all__ = ["Cnn", "build_cnn"]


class Convolution(tf.Module):
    """Biasless 3x3 convolution on channels-last images, its weight (filters, channels, 3, 3) as in PyTorch.

    Args:
        channels: Channels of the input.
        filters: Channels of the output.
    """

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.zeros((filters, channels, 3, 3)))

    def __call__(self, images: Any) -> Any:
        """Images (n, height, width, filters) of the same size."""
        kernel = tf.transpose(self.weight, (2, 3, 1, 0))
        return tf.nn.conv2d(images, kernel, 1, "SAME")


class Cnn(tf.Module):
    """Blocks of biasless 3x3 convolution, batch norm, ReLU and 2x2 max pooling; dropout; one affine layer.

    Args:
        filters: Filters of each block.
        size: Height and width of the images.
        classes: Number of classes.
        dropout: Share of features dropped before the affine layer while training.
        smooth: SiLU and average pooling instead of ReLU and max pooling.

    Example:
        >>> tuple(Cnn((4, 8), size=28, classes=10, dropout=0.0)(tf.zeros((2, 28, 28))).shape)
        (2, 10)
    """

    def __init__(
        self, filters: Sequence[int], size: int, classes: int, dropout: float, smooth: bool = False
    ) -> None:
        super().__init__()
        self.smooth = smooth
        channels = (1, *filters[:-1])
        self.convolutions = [Convolution(a, b) for a, b in zip(channels, filters, strict=True)]
        self.norms = [BatchNorm(count) for count in filters]
        self.dropout = dropout
        self.generator = keras.random.SeedGenerator(0)
        self.head = Dense(filters[-1] * (size >> len(filters)) ** 2, classes)

    def __call__(self, images: Any, training: bool = False) -> Any:
        """Logits (n, classes) of images (n, size, size)."""
        hidden = images[..., None]
        activate = tf.nn.silu if self.smooth else tf.nn.relu
        pool = tf.nn.avg_pool2d if self.smooth else tf.nn.max_pool2d
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = pool(activate(norm(convolution(hidden), training)), 2, 2, "VALID")
        # PyTorch flattens channels first; the head's weights are in that order.
        flat = tf.reshape(tf.transpose(hidden, (0, 3, 1, 2)), (-1, self.head.weight.shape[1]))
        if training and self.dropout:
            flat = keras.random.dropout(flat, self.dropout, seed=self.generator)
        return self.head(flat)


def build_cnn(shape: Mapping[str, Any]) -> BuiltModel:
    """Classifier of ``shape``: filters, size, classes, dropout, and optionally smooth."""
    sizes = (shape["filters"], shape["size"], shape["classes"], shape["dropout"])
    return classification(Cnn(*sizes, shape.get("smooth", False)))
