"""Models of the built-in problems in the precision of their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

__all__ = ["floats", "widen"]


@contextmanager
def floats(dtype: str) -> Iterator[None]:
    """Context in which Keras makes layers, and the learning rates of optimizers, in this dtype.

    Example:
        >>> with floats("float64"):
        ...     keras.optimizers.SGD(0.1).learning_rate.dtype
        'float64'
    """
    # The policy is the default of layers, the float of optimizers; once asked for, a policy stays as it is.
    former, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(former)
        keras.config.set_dtype_policy(policy)


def widen(module: tf.Module) -> None:
    """Replace the float32 variables and constants of a module and those below it by float64 ones, in place.

    Keras layers are left alone: they are made in the right dtype under `floats`.

    Args:
        module: A module that nothing has been traced of yet.

    Example:
        >>> module = tf.Module()
        >>> module.weight = tf.Variable([1.0, 2.0])
        >>> widen(module)
        >>> module.weight.dtype.name
        'float64'
    """
    _widen(module, set(), {})


def _widen(module: tf.Module, seen: set[int], made: dict[Any, Any]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    for name, value in list(vars(module).items()):
        if not name.startswith("_self_"):
            wide = _wide(value, seen, made)
            if wide is not value:
                setattr(module, name, wide)


def _wide(value: Any, seen: set[int], made: dict[Any, Any]) -> Any:
    if isinstance(value, tf.Variable) and value.dtype == tf.float32:
        if value.ref() not in made:  # a variable that two modules share stays one
            made[value.ref()] = tf.Variable(tf.cast(value, tf.float64), trainable=value.trainable)
        return made[value.ref()]
    if isinstance(value, tf.Tensor) and value.dtype == tf.float32:
        return tf.cast(value, tf.float64)
    if isinstance(value, (list, tuple)):
        for item in value:
            _wide(item, seen, made)
    elif isinstance(value, tf.Module) and not isinstance(value, keras.layers.Layer):
        _widen(value, seen, made)
    return value
