"""What a predicted change does to the optimizer's own state (F59)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hybridcore_tensorflow.variables import components, raw

__all__ = [
    "first_moment_memory",
    "has_velocity",
    "inner",
    "moment_statistics",
    "scale_rated_velocity",
    "scale_velocity",
]


def inner(optimizer: Any) -> Any:
    """The optimizer that updates the weights, inside a `LossScaleOptimizer`."""
    return optimizer.inner_optimizer if hasattr(optimizer, "inner_optimizer") else optimizer


def _velocities(optimizer: Any) -> tuple[Sequence[Any], float]:
    """Heavy-ball velocities, one per trained variable, and the sign of the gradient in them.

    Keras' SGD gathers ``m = momentum * m - rate * gradient``: its velocity points downhill. Lion's
    averaged gradient is no velocity, and Adam's is kept.
    """
    kernel = inner(optimizer)
    if isinstance(kernel, keras.optimizers.SGD):
        return (kernel.momentums if kernel.momentum else ()), -1.0
    if isinstance(kernel, keras.optimizers.RMSprop):
        return kernel._momentums, 1.0
    return getattr(kernel, "heavy_ball", ()), 1.0


def has_velocity(optimizer: Any) -> bool:
    """Whether the optimizer keeps a heavy-ball velocity."""
    return bool(_velocities(optimizer)[0])


def scale_velocity(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Scale the velocity m by ``max(0, cos(m, g))`` with the fresh gradient g, over all parameters.

    The velocity was gathered where the weights were before the jump. As far as it still agrees with the
    gradient at the new place it is worth keeping; a velocity that points uphill is dropped. Works eagerly
    and inside a graph, and copies nothing to the host.
    """
    velocities, sign = _velocities(optimizer)
    kernel = inner(optimizer)
    pairs = [
        (components(velocities[kernel._get_variable_index(v)]), tf.convert_to_tensor(g))
        for g, v in zip(gradients, variables, strict=True)
        if g is not None and velocities
    ]
    if not pairs:
        return
    wide = tf.float64 if any(g.dtype == tf.float64 for _, g in pairs) else tf.float32
    rows = [(parts, tf.cast(g, wide)) for parts, g in pairs]

    def total(values: Any) -> Any:
        return tf.add_n([tf.reduce_sum(value) for value in values])

    current = [tf.cast(parts[0].read_value(), wide) for parts, _ in rows]
    fresh = [sign * g for _, g in rows]
    dot = total(m * g for m, g in zip(current, fresh, strict=True))
    squares = total(m * m for m in current) * total(g * g for g in fresh)
    cosine = tf.clip_by_value(dot / tf.maximum(tf.sqrt(squares), np.finfo(np.float32).tiny), 0.0, 1.0)
    for (parts, _), velocity in zip(rows, current, strict=True):
        for part in parts:
            part.assign(tf.cast(velocity * cosine, part.dtype))


def scale_rated_velocity(optimizer: Any, factor: float) -> None:
    """Scale the velocities that hold the learning rate, as the velocities of Keras' own SGD and RMSprop do.

    ``m = momentum * m - rate * gradient`` goes on at the old rate for many steps after the rate has changed;
    PyTorch's velocity gathers plain gradients, and follows at once. Here both do (F40).
    """
    if isinstance(inner(optimizer), keras.optimizers.SGD | keras.optimizers.RMSprop):
        for velocity in _velocities(optimizer)[0]:
            for part in components(velocity):
                part.assign(part * tf.cast(factor, part.dtype))


def first_moment_memory(optimizer: Any) -> float:
    """``1 / (1 - beta1)`` of the optimizer; 1.0 without momentum."""
    kernel = inner(optimizer)
    beta = getattr(kernel, "beta_1", None)
    if beta is None:
        beta = getattr(kernel, "momentum", 0.0)
    return 1.0 / max(1.0 - float(beta or 0.0), 1e-9)


_FIRST = ("_momentums", "momentums", "_m", "heavy_ball", "first_moments")
_SECOND = ("_velocities", "_u", "_accumulators", "_accumulated_grads", "second_moments")


def moment_statistics(optimizer: Any) -> dict[str, float]:
    """Mean and standard deviation of first and second moments; zeros where there are none."""
    kernel, result = inner(optimizer), {}
    for letter, names in (("m", _FIRST), ("v", _SECOND)):
        held = next((found for name in names if (found := getattr(kernel, name, None))), ())
        arrays = [components(raw(v))[0].numpy().astype(np.float64).ravel() for v in held if v is not None]
        flat = np.concatenate(arrays) if arrays else np.zeros(1)
        result[f"{letter}_mean"], result[f"{letter}_std"] = float(flat.mean()), float(flat.std())
    return result
