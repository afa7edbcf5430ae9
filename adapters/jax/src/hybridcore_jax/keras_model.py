"""A compiled Keras model as state: variables in and out, losses of examples, moments of its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax.numpy as jnp
import keras

from hybridcore.errors import ModelError
from hybridcore_jax.adapter import JaxAdapter
from hybridcore_jax.trees import copy_tree

__all__ = ["KerasAdapter", "compiled_losses", "read_state", "write_state"]


def read_state(model: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Trainable weights by path, and all else that a step changes: the arrays in use, not copies."""
    rest = {
        "model": [v.value for v in model.non_trainable_variables],
        "optimizer": [v.value for v in model.optimizer.variables],
    }
    return {v.path: v.value for v in model.trainable_variables}, rest


def write_state(model: Any, params: dict[str, Any], rest: dict[str, list[Any]]) -> None:
    """Put arrays into the variables; those that are there already stay."""
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    values = [*(params[v.path] for v in model.trainable_variables), *rest["model"], *rest["optimizer"]]
    for variable, value in zip(variables, values, strict=True):
        if variable.value is not value:
            variable.assign(value)


class KerasAdapter(JaxAdapter):
    """`JaxAdapter` over the variables of a Keras model; Keras itself takes the steps.

    Args:
        model: A built and compiled model.
        loss_fn: See `compiled_losses`.

    Attributes:
        keras_model: The model.
        optimizer: Its optimizer.
    """

    def __init__(self, model: Any, loss_fn: Callable[..., Any]) -> None:
        self.keras_model, self.optimizer = model, model.optimizer
        params, rest = copy_tree(read_state(model))
        if len(params) != len(model.trainable_variables):
            raise ModelError(
                "two weights have the same path",
                where="model.trainable_variables",
                fix="give layers of one model different names",
            )
        state = {"params": params, "opt_state": rest}
        super().__init__(state, None, loss_fn, train_step=_no_step, learning_rate=1.0)
        beta = getattr(model.optimizer, "beta_1", None) or getattr(model.optimizer, "momentum", None) or 0.0
        self.momentum_memory = 1.0 / max(1.0 - float(beta), 1e-9)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the Keras optimizer now, times the engine's own factor."""
        return self._factor * float(self.optimizer.learning_rate)

    def moments(self) -> dict[str, float]:
        """Mean and standard deviation of the optimizer's moments; zeros where it has none."""
        found: dict[str, list[Any]] = {"m": [], "v": []}
        for variable, value in zip(self.optimizer.variables, self.opt_state["optimizer"], strict=True):
            name = variable.path.rpartition("/")[2]
            if name.endswith("velocity") or name.endswith("accumulator"):
                found["v"].append(value)
            elif name.endswith("momentum"):
                found["m"].append(value)
        result = {}
        for letter, arrays in found.items():
            flat = jnp.concatenate([a.ravel() for a in arrays]) if arrays else jnp.zeros(1)
            result[f"{letter}_mean"], result[f"{letter}_std"] = float(flat.mean()), float(flat.std())
        return result


def _no_step(state: Any, batch: Any) -> NoReturn:
    raise ModelError(
        "Keras takes the steps of this model", where="KerasAdapter.train_step", fix="call model.fit"
    )


def compiled_losses(model: Any, own: Callable[[Any, Any], Any] | None = None) -> Callable[..., Any]:
    """Per-example losses of a compiled model with one output, as ``loss_fn(params, batch, state)``.

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

    def loss_fn(params: Any, batch: Any, state: Any) -> Any:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        trainable = [params[v.path] for v in model.trainable_variables]
        with _in_training(norms):
            y_pred, _ = model.stateless_call(trainable, state["opt_state"]["model"], x, training=False)
        losses = jnp.asarray(found(y, y_pred))
        losses = losses.reshape(losses.shape[0], -1).mean(1)
        return (losses if weight is None else losses * weight), state

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
        y_true = jnp.asarray(y_true)
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
