"""What the models have in common: weights by name, batches as tensors, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import tensorflow as tf

from hybridcore.errors import TaskError
from hybridcore.protocols import Problem
from hybridcore_tensorflow.variables import raw, weights_of

__all__ = ["BuiltModel", "Dense", "as_tensors", "classification", "load_weights"]


@attrs.frozen
class BuiltModel:
    """A model and how it is judged.

    Attributes:
        model: The module.
        loss_fn: ``loss_fn(model, batch, training)`` gives per-example losses (n,); training uses their mean.
            The batch may hold NumPy arrays or tensors.
        sums: ``sums(model, batch)`` gives what `finish` needs of one batch in evaluation mode, as tensors
            to be added up over batches, the last one the number of examples.
        finish: Mean metrics, ``"loss"`` first, from those sums.
        residual_fn: ``residual_fn(model, batch)`` gives residuals (n,) whose squares are the losses; None
            where the losses are no squares.
    """

    model: tf.Module
    loss_fn: Callable[..., Any]
    sums: Callable[[Any, Any], tuple[Any, ...]]
    finish: Callable[[list[float]], dict[str, float]]
    residual_fn: Callable[[Any, Any], Any] | None = None
    _compiled: list[Any] = attrs.field(factory=list, init=False)

    def evaluate(self, batches: Iterable[Any]) -> dict[str, float]:
        """Mean metrics over all examples of `batches`; changes nothing in the model."""
        if not self._compiled:
            function = tf.function(lambda batch: self.sums(self.model, batch), autograph=False)
            self._compiled.append(function)
        totals: list[float] = []
        for batch in batches:
            row = [float(value) for value in self._compiled[0](tuple(as_tensors(batch)))]
            totals = [a + b for a, b in zip(totals, row, strict=True)] if totals else row
        return self.finish(totals)


class Dense(tf.Module):
    """Affine map with PyTorch's weight layout (out, in), so that weights pass unchanged between frameworks.

    Args:
        fan_in: Inputs.
        fan_out: Outputs.
        bias: Whether there is a bias.
        trainable: Whether both are trained.
    """

    def __init__(self, fan_in: int, fan_out: int, bias: bool = True, trainable: bool = True) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.zeros((fan_out, fan_in)), trainable=trainable)
        if bias:
            self.bias = tf.Variable(tf.zeros((fan_out,)), trainable=trainable)

    def __call__(self, inputs: Any) -> Any:
        """Map the last axis of inputs (..., in) to (..., out)."""
        flat = tf.reshape(inputs, (-1, self.weight.shape[1]))
        mapped = tf.matmul(flat, self.weight, transpose_b=True)
        if hasattr(self, "bias"):
            mapped = tf.nn.bias_add(mapped, self.bias)
        return tf.reshape(mapped, (*_sizes(inputs)[:-1], self.weight.shape[0]))


def _sizes(tensor: Any) -> list[Any]:
    """Sizes of all axes, numbers where they are known."""
    dynamic = tf.shape(tensor)
    return [n if n is not None else dynamic[i] for i, n in enumerate(tensor.shape)]


def as_tensors(batch: Iterable[Any]) -> list[Any]:
    """Arrays of a batch as tensors."""
    return [tf.convert_to_tensor(part) for part in batch]


def load_weights(model: tf.Module, problem: Problem) -> None:
    """Set every variable, frozen ones too, to the problem's weight of the same name.

    Statistics of Keras layers keep their defaults.

    Raises:
        TaskError: A name is missing or left over, or a shape differs; nothing was changed.
    """
    variables = weights_of(model)
    mistakes = [f"no weight for {name}" for name in variables.keys() - problem.weights.keys()]
    mistakes += [f"no parameter {name}" for name in problem.weights.keys() - variables.keys()]
    mistakes += [
        f"{name} has shape {problem.weights[name].shape} instead of {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in problem.weights and problem.weights[name].shape != tuple(variable.shape)
    ]
    if mistakes:
        raise TaskError(
            f"initial weights do not fit the model of task {problem.name!r}",
            where="problem.weights",
            got="; ".join(sorted(mistakes)),
            expected=f"{len(variables)} arrays named and shaped like the model's variables",
            fix="pip install --upgrade hybridcore hybridcore-tensorflow",
        )
    for name, variable in variables.items():
        raw(variable).assign(problem.weights[name].astype(raw(variable).dtype.as_numpy_dtype))


def classification(model: Any) -> BuiltModel:
    """A classifier: cross-entropy per example; metrics ``"loss"`` and ``"accuracy"``.

    Args:
        model: ``model(inputs, training)`` gives logits (n, classes); batches are ``(inputs, classes (n,))``.
    """

    def loss_fn(model: Any, batch: Any, training: bool = False) -> Any:
        inputs, classes = as_tensors(batch)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(classes, model(inputs, training))

    def sums(model: Any, batch: Any) -> tuple[Any, ...]:
        inputs, classes = as_tensors(batch)
        logits = model(inputs, False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)
        hits = tf.equal(tf.argmax(logits, 1, output_type=classes.dtype), classes)
        return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(hits, tf.float32)), tf.size(classes)

    def finish(totals: list[float]) -> dict[str, float]:
        loss, correct, count = totals
        return {"loss": loss / count, "accuracy": correct / count}

    return BuiltModel(model, loss_fn, sums, finish)
