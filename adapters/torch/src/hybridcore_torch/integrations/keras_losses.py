"""Per-example losses of a compiled Keras model on the torch backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import torch

from hybridcore.errors import ModelError

__all__ = ["compiled_losses"]


def compiled_losses(model: Any, own: Callable[[Any, Any], Any] | None = None) -> Callable[..., Any]:
    """Per-example losses of a compiled model with one output, as ``loss_fn(model, batch)``.

    BatchNormalization that learns uses the batch's own statistics: moving ones belong to the weights that
    made them. Dropout and the like are off.

    Args:
        model: The model.
        own: ``own(y_true, y_pred)`` instead of the compiled loss.

    Raises:
        ModelError: The compiled loss has no per-example form, such as one per output.
    """
    found = own if own is not None else _unreduced(model.loss)
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        changing = [v.value for v in model.non_trainable_variables]
        former = [value.detach().clone() for value in changing]
        with _in_training(norms):
            y_pred = model(x, training=False)
        if changing:
            with torch.no_grad():
                torch._foreach_copy_(changing, former)
        losses: torch.Tensor = found(keras.ops.convert_to_tensor(y), y_pred)
        losses = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
        return losses if weight is None else losses * keras.ops.convert_to_tensor(weight, losses.dtype)

    return loss_fn


def _unreduced(loss: Any) -> Callable[[Any, Any], Any]:
    known = keras.losses.get(loss) if isinstance(loss, str) else loss
    if isinstance(known, keras.losses.Loss):

        def call(y_true: Any, y_pred: Any) -> Any:
            former, known.reduction = known.reduction, None
            try:
                return known(y_true, y_pred)
            finally:
                known.reduction = former

        return call
    if callable(known):
        return _alike_ranks(known)
    raise ModelError(
        "the compiled loss has no per-example form",
        where="model.compile(loss=...)",
        got=type(loss).__name__,
        expected="one loss: a name, a function or a keras.losses.Loss",
        fix="pass HybridCallback(loss_fn=...) with losses of shape (n,)",
    )


def _alike_ranks(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Bring targets to the rank of predictions where one of them has a last axis of one, as Keras does."""

    def call(y_true: Any, y_pred: Any) -> Any:
        if y_true.ndim == y_pred.ndim - 1 and y_pred.shape[-1] == 1:
            y_true = y_true[..., None]
        elif y_true.ndim == y_pred.ndim + 1 and y_true.shape[-1] == 1:
            y_true = y_true[..., 0]
        return function(y_true, y_pred)

    return call


@contextmanager
def _in_training(norms: list[Any]) -> Iterator[None]:
    def forced(layer: Any) -> Any:
        return lambda inputs, *args, **more: type(layer).call(
            layer, inputs, *args, **{**more, "training": True}
        )

    try:
        for layer in norms:
            object.__setattr__(layer, "call", forced(layer))
        yield
    finally:
        for layer in norms:
            layer.__dict__.pop("call", None)
