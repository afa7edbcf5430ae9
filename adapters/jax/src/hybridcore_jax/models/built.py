"""What the models have in common: weights by name, layers, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybridcore.errors import TaskError
from hybridcore.layout import ParamGroup
from hybridcore.protocols import Problem

__all__ = ["BuiltModel", "Params", "affine", "classification", "evaluator", "load_weights"]

Params = dict[str, jax.Array]
"""Arrays by dotted name, in PyTorch's shapes."""


class BuiltModel(NamedTuple):
    """A model and how it is judged.

    Attributes:
        shapes: Shape of each parameter by name.
        loss_fn: Per-example losses (n,) in the form that `LossCaller` describes.
        evaluate: ``evaluate(params, state, batches)`` gives mean metrics over all examples, ``"loss"``
            first, in evaluation mode.
        state: The model's own state, or None.
        random: Whether training draws random numbers.
        embeddings: Names of embedding tables.
        params: The parameters; empty until `load_weights`.
        residual_fn: ``residual_fn(params, batch)`` gives residuals (n,) whose squares are the losses; None
            where the losses are no squares.
        trainable: Whether the parameter of a name is trained; None trains all.
    """

    shapes: Mapping[str, tuple[int, ...]]
    loss_fn: Callable[..., Any]
    evaluate: Callable[[Params, Any, Iterable[Any]], dict[str, float]]
    state: Any = None
    random: bool = False
    embeddings: tuple[str, ...] = ()
    params: Params = {}
    residual_fn: Callable[..., Any] | None = None
    trainable: Callable[[str], bool] | None = None

    @property
    def groups(self) -> dict[str, ParamGroup]:
        """Kinds of parameters that a name and a shape do not tell."""
        return dict.fromkeys(self.embeddings, ParamGroup.EMBEDDING)


def affine(params: Params, name: str, inputs: jax.Array) -> jax.Array:
    """``inputs @ weight.T + bias`` of a layer."""
    return inputs @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def evaluator(
    sums: Callable[[Params, Any, Any], dict[str, jax.Array]],
    finish: Callable[[dict[str, float]], dict[str, float]],
) -> Callable[[Params, Any, Iterable[Any]], dict[str, float]]:
    """Evaluation from compiled sums over each batch, added up in float64.

    Args:
        sums: ``sums(params, state, batch)``.
        finish: Metrics from the totals.
    """
    compiled = jax.jit(sums)

    def evaluate(params: Params, state: Any, batches: Iterable[Any]) -> dict[str, float]:
        totals: dict[str, float] = {}
        for batch in batches:
            for name, value in compiled(params, state, batch).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return finish(totals)

    return evaluate


def classification(
    logits: Callable[..., tuple[jax.Array, Any]],
) -> tuple[Callable[..., Any], Callable[[Params, Any, Iterable[Any]], dict[str, float]]]:
    """Loss function and evaluation of a classifier: cross-entropy; metrics ``"loss"`` and ``"accuracy"``.

    Args:
        logits: ``logits(params, inputs, state, key, training, batch_statistics)`` gives logits (n, classes)
            and the new state; batches are ``(inputs, classes (n,))``.
    """
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def loss_fn(
        params: Params, batch: Any, *, state: Any, key: Any, training: bool, batch_statistics: bool
    ) -> tuple[jax.Array, Any]:
        inputs, classes = batch
        found, state = logits(params, inputs, state, key, training, batch_statistics)
        return cross_entropy(found, jnp.asarray(classes)), state

    def sums(params: Params, state: Any, batch: Any) -> dict[str, jax.Array]:
        inputs, classes = batch
        found, _ = logits(params, inputs, state, None, False, False)
        return {
            "loss": cross_entropy(found, classes).sum(),
            "accuracy": (found.argmax(axis=1) == classes).sum(),
            "count": jnp.asarray(len(classes)),
        }

    return loss_fn, evaluator(sums, lambda t: {name: t[name] / t["count"] for name in ("loss", "accuracy")})


def load_weights(built: BuiltModel, problem: Problem, device: Any) -> BuiltModel:
    """The model with the problem's weights, and its state, in the weights' precision.

    Raises:
        TaskError: A name is missing or left over, a shape differs, or the weights are float64 and JAX has
            double precision switched off.
    """
    wanted, given = built.shapes, problem.weights
    mistakes = [f"no weight for {name}" for name in wanted.keys() - given.keys()]
    mistakes += [f"no parameter for {name}" for name in given.keys() - wanted.keys()]
    mistakes += [
        f"{name} has shape {given[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in given and given[name].shape != tuple(shape)
    ]
    if mistakes:
        raise TaskError(
            f"the weights of task {problem.name!r} do not fit its model",
            where="problem.weights",
            got="; ".join(sorted(mistakes)),
            expected=f"the {len(wanted)} parameters of {problem.model!r}",
            fix="make names and shapes of problem.weights those of the model",
        )
    double = any(array.dtype == np.float64 for array in given.values())
    if double and jnp.result_type(float) != np.float64:
        raise TaskError(
            "the run is to be in float64, which JAX has switched off",
            where="run.dtype",
            got="float64, with jax_enable_x64 = False",
            expected="JAX with double precision",
            fix='set the environment variable JAX_ENABLE_X64=1, or run.dtype = "float32"',
        )
    wide = np.float64 if double else np.float32
    params = {name: jax.device_put(np.array(given[name], wide), device) for name in wanted}
    state = jax.tree.map(lambda x: x.astype(wide) if jnp.issubdtype(x.dtype, np.floating) else x, built.state)
    return built._replace(params=params, state=jax.device_put(state, device))
