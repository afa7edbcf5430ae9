"""Adaptive gradient clipping: gradients are measured against the weights that they change (F69)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hybridcore_tensorflow.variables import components

__all__ = ["clip_unit", "unit_axis"]

FLOOR = 1e-3
"""Least norm that a unit's weights are taken to have, so that zero weights can grow."""


def unit_axis(name: str) -> int:
    """Axis whose indices are the units of a variable of two axes or more.

    Keras keeps the outputs of a ``kernel`` last, and a row per entry in ``embeddings``; the built-in tasks
    call a matrix ``weight`` and keep outputs first.

    Example:
        >>> unit_axis("dense.kernel"), unit_axis("layers.0.weight"), unit_axis("token.embeddings")
        (-1, 0, 0)
    """
    return 0 if name.rsplit(".", 1)[-1] in {"weight", "embedding", "embeddings"} else -1


def clip_unit(gradient: Any, variable: Any, axis: int, ratio: Any) -> Any:
    """A gradient with each unit's shortened (Brock et al. 2021, equation 3).

    ``g_i <- g_i ratio max(|w_i|, FLOOR) / |g_i|`` where ``|g_i| > ratio max(|w_i|, FLOOR)``; unit i is what
    belongs to one output of a layer, or the whole of a vector. Gradients that are not finite stay so; a
    sparse one becomes dense.

    Args:
        gradient: Tensor or `tf.IndexedSlices`.
        variable: The variable that it belongs to.
        axis: See `unit_axis`.
        ratio: Largest norm of a gradient over the norm of its weights; scalar tensor.
    """
    dense = tf.convert_to_tensor(gradient)
    limit = tf.cast(ratio, _wide(dense)) * tf.maximum(_unit_norm(components(variable)[0], axis), FLOOR)
    size = _unit_norm(dense, axis)
    return dense * tf.cast(tf.where(size > limit, limit / size, tf.ones_like(size)), dense.dtype)


def _wide(tensor: Any) -> Any:
    return tf.float64 if tensor.dtype == tf.float64 else tf.float32


def _unit_norm(tensor: Any, axis: int) -> Any:
    rank, wide = len(tensor.shape), tf.cast(tensor, _wide(tensor))
    axes = [i for i in range(rank) if rank < 2 or i != axis % rank]
    return tf.sqrt(tf.reduce_sum(wide * wide, axis=axes, keepdims=True))
