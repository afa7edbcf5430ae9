"""Tanh network with derivatives along its inputs, and its use for a Poisson equation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import tensorflow as tf

from hybridcore_tensorflow.models.built import BuiltModel, Dense, as_tensors

__all__ = ["TanhNetwork", "build_pinn", "finish_solution"]


class TanhNetwork(tf.Module):
    """Affine layers with tanh between them, and the Laplacian of their output.

    Args:
        widths: Sizes of input, hidden layers and output; the output has size 1.

    Example:
        >>> value, laplacian = TanhNetwork((2, 8, 1)).laplacian(tf.zeros((5, 2)))
        >>> tuple(value.shape), tuple(laplacian.shape)
        ((5,), (5,))
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = [Dense(a, b) for a, b in pairwise(widths)]

    def __call__(self, points: Any) -> Any:
        """Values (n,) at points (n, axes)."""
        hidden = points
        for layer in self.layers[:-1]:
            hidden = tf.tanh(layer(hidden))
        return tf.squeeze(self.layers[-1](hidden), 1)

    def laplacian(self, points: Any) -> tuple[Any, Any]:
        """Values and the sum of second derivatives along all axes, both (n,), at points (n, axes).

        One forward pass carries value h, Jacobian J and Laplacian L through every layer (Li et al. 2024,
        "A computational framework for neural network-based variational Monte Carlo with Forward
        Laplacian"): a linear map acts on each alike, and ``t = tanh(h)`` gives
        ``L_t = t' L + t'' sum_axes J^2`` with ``t' = 1 - t^2`` and ``t'' = -2 t t'``.
        """
        hidden = self.layers[0](points)
        # The Jacobian of the first layer is the same at every point: its weight, (axes, 1, units).
        jacobian = tf.transpose(self.layers[0].weight)[:, None, :]
        laplacian = tf.zeros_like(hidden)
        for layer in self.layers[1:]:
            value = tf.tanh(hidden)
            slope = 1.0 - value * value
            laplacian = slope * (laplacian - 2.0 * value * tf.reduce_sum(jacobian * jacobian, 0))
            jacobian = slope * jacobian
            hidden = layer(value)
            laplacian = _linear(laplacian, layer.weight)
            jacobian = _linear(jacobian, layer.weight)
        return tf.squeeze(hidden, 1), tf.squeeze(laplacian, 1)

    def derivative(self, points: Any, direction: Sequence[float]) -> tuple[Any, Any]:
        """Values and derivatives along `direction`, both (n,), at points (n, axes).

        One forward pass carries value h and tangent T through every layer: a linear map acts on each alike,
        and ``t = tanh(h)`` gives ``T_t = (1 - t^2) T`` (forward-mode differentiation).
        """
        hidden = self.layers[0](points)
        along = _linear(tf.constant(direction, points.dtype), self.layers[0].weight)
        tangent = tf.zeros_like(hidden) + along
        for layer in self.layers[1:]:
            value = tf.tanh(hidden)
            tangent = _linear((1.0 - value * value) * tangent, layer.weight)
            hidden = layer(value)
        return tf.squeeze(hidden, 1), tf.squeeze(tangent, 1)


def _linear(inputs: Any, weight: Any) -> Any:
    return tf.einsum("...i,oi->...o", inputs, weight)


def _residuals(boundary_weight: float, model: Any, batch: Any) -> Any:
    """Weighted residuals (n + m,): their mean square is the interior one plus the weighted edge one."""
    interior, source, edge, value = as_tensors(batch)[:4]
    n, m = tf.cast(tf.shape(interior)[0], source.dtype), tf.cast(tf.shape(edge)[0], source.dtype)
    _, laplacian = model.laplacian(interior)
    residual = (laplacian + source) * tf.sqrt((n + m) / n)
    error = (model(edge) - value) * tf.sqrt(boundary_weight * (n + m) / m)
    return tf.concat([residual, error], 0)


def _loss(boundary_weight: float, model: Any, batch: Any) -> Any:
    return tf.square(_residuals(boundary_weight, model, batch))


def _sums(boundary_weight: float, model: Any, batch: Any) -> tuple[Any, ...]:
    losses = _loss(boundary_weight, model, batch)
    interior, _, _, _, exact = as_tensors(batch)
    error = tf.reduce_sum(tf.square(model(interior) - exact))
    return tf.reduce_sum(losses), error, tf.reduce_sum(tf.square(exact)), tf.size(losses)


def finish_solution(totals: list[float]) -> dict[str, float]:
    """Mean loss, and the L2 error of the solution over its L2 norm, from four sums."""
    loss, error, norm, count = totals
    return {"loss": loss / count, "relative_l2": math.sqrt(error / norm)}


def build_pinn(shape: Mapping[str, Any]) -> BuiltModel:
    """Network of ``shape``: widths, and boundary_weight, the weight of points on the edge."""
    weight = float(shape["boundary_weight"])
    model = TanhNetwork(shape["widths"])
    return BuiltModel(
        model,
        partial(_loss, weight),
        partial(_sums, weight),
        finish_solution,
        residual_fn=partial(_residuals, weight),
    )
