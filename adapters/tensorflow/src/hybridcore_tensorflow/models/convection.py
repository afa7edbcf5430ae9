"""Physics-informed tanh network for a one-dimensional convection equation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import tensorflow as tf

from hybridcore_tensorflow.models.built import BuiltModel, as_tensors
from hybridcore_tensorflow.models.pinn import TanhNetwork, finish_solution

__all__ = ["build_convection"]


def _residuals(beta: float, weight: float, model: Any, batch: Any) -> Any:
    """Weighted residuals (n + m + k,): interior, initial values, periodicity.

    Their mean square is the interior mean square plus `weight` times each of the other two.
    """
    interior, start, value, left, right = as_tensors(batch)[:5]
    parts = (
        model.derivative(interior, (beta, 1.0))[1],
        math.sqrt(weight) * (model(start) - value),
        math.sqrt(weight) * (model(left) - model(right)),
    )
    sizes = [tf.cast(tf.size(part), part.dtype) for part in parts]
    total = tf.add_n(sizes)
    return tf.concat([part * tf.sqrt(total / n) for part, n in zip(parts, sizes, strict=True)], 0)


def _loss(beta: float, weight: float, model: Any, batch: Any) -> Any:
    return tf.square(_residuals(beta, weight, model, batch))


def _sums(beta: float, weight: float, model: Any, batch: Any) -> tuple[Any, ...]:
    losses = _loss(beta, weight, model, batch)
    interior, exact = as_tensors((batch[0], batch[5]))
    error = tf.reduce_sum(tf.square(model(interior) - exact))
    return tf.reduce_sum(losses), error, tf.reduce_sum(tf.square(exact)), tf.size(losses)


def build_convection(shape: Mapping[str, Any]) -> BuiltModel:
    """Network of ``shape``: widths, beta, and boundary_weight, the weight of the two boundary terms."""
    given = float(shape["beta"]), float(shape["boundary_weight"])
    return BuiltModel(
        TanhNetwork(shape["widths"]),
        partial(_loss, *given),
        partial(_sums, *given),
        finish_solution,
        residual_fn=partial(_residuals, *given),
    )
