"""Calls the user's loss function: training flag, form of the result, typed errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from hybridcore.errors import BatchError, ModelError, ProbeError
from hybridcore_tensorflow.batches import describe

__all__ = ["LossCaller", "batch_errors"]

_FORM_ERRORS = (
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    tf.errors.InvalidArgumentError,
    tf.errors.OutOfRangeError,
    tf.errors.NotFoundError,
)


@contextmanager
def batch_errors(batch: Any) -> Iterator[None]:
    """Context that turns what a misformed batch raises, while tracing or running, into `BatchError`."""
    try:
        yield
    except _FORM_ERRORS as error:
        raise BatchError(
            f"the model cannot take this batch: {str(error).strip().splitlines()[-1][:300]}",
            where="loss_fn(model, batch)",
            got=describe(batch),
            fix="look at the cause above; the weights are unchanged",
        ) from error


class LossCaller:
    """Losses of a batch from ``loss_fn(model, batch)`` or ``loss_fn(model, batch, training)``.

    TensorFlow models have no mode of their own; a function with an argument `training` is told which one
    to call the model in.

    Args:
        model: Called by the loss function.
        loss_fn: Returns per-example losses, shape (n,), or their mean.
        layers: The model's Keras layers.
        check: Called after each call of the loss function, which is whenever a graph is made.

    Raises:
        ModelError: The model behaves differently in training, but `loss_fn` cannot be told.
    """

    def __init__(
        self, model: Any, loss_fn: Callable[..., Any], layers: Sequence[Any], check: Callable[[], None]
    ) -> None:
        self._model, self._loss_fn, self._check = model, loss_fn, check
        try:
            parameters = inspect.signature(loss_fn).parameters
        except (TypeError, ValueError):
            parameters = {}  # type: ignore[assignment]
        self.takes_training = "training" in parameters
        modal = [layer.name for layer in layers if _has_modes(layer)]
        if modal and not self.takes_training:
            raise ModelError(
                "the loss function cannot be told whether the model is in training",
                where="loss_fn",
                got=f"loss_fn({', '.join(parameters)}), and layers with two modes: {', '.join(modal[:5])}",
                expected="loss_fn(model, batch, training)",
                fix="take an argument `training` and call the model with `training=training`",
            )

    def __call__(self, batch: Any, training: bool) -> Any:
        """Losses of the batch, as the loss function returns them.

        Raises:
            BatchError: The result is no floating-point tensor.
            ModelError: `check` found something.
        """
        if self.takes_training:
            losses = self._loss_fn(self._model, batch, training=training)
        else:
            losses = self._loss_fn(self._model, batch)
        self._check()
        if not isinstance(losses, tf.Tensor) or not losses.dtype.is_floating:
            raise BatchError(
                "the loss function returned no losses",
                where="loss_fn(model, batch)",
                got=describe(losses),
                expected="a floating-point tensor of shape (n,)",
                fix='return per-example losses, for example with reduction="none"',
            )
        return losses

    def mean(self, batch: Any) -> tuple[Any, Any]:
        """Mean training loss, at least float32, and how many losses it is the mean of."""
        losses = self(batch, training=True)
        wide = tf.cast(losses, tf.float32) if losses.dtype.size < 4 else losses
        count = tf.shape(losses)[0] if losses.shape.rank else tf.constant(0)
        return tf.reduce_mean(wide), count

    def per_example(self, batch: Any) -> Any:
        """Evaluation losses of shape (n,); further axes are averaged.

        Raises:
            ProbeError: The loss function returns a single number.
        """
        losses = self(batch, training=False)
        if losses.shape.rank == 0:
            raise ProbeError(
                "probes need per-example losses, but the loss function returns their mean",
                where="loss_fn(model, batch)",
                got="shape ()",
                expected="shape (n,)",
                fix='use reduction="none"; training takes the mean itself',
            )
        wide = tf.cast(losses, tf.float64)
        return (
            wide if losses.shape.rank == 1 else tf.reduce_mean(tf.reshape(wide, (tf.shape(wide)[0], -1)), 1)
        )


def _has_modes(layer: Any) -> bool:
    if isinstance(layer, keras.layers.BatchNormalization):
        return True
    rate = getattr(layer, "rate", None)
    return isinstance(layer, keras.layers.Dropout) and bool(rate)
