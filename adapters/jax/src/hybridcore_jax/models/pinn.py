"""Physics-informed tanh network for a Poisson equation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hybridcore_jax.models.built import BuiltModel, Params, affine, evaluator
from hybridcore_jax.models.mlp import layer_shapes

__all__ = ["build_pinn", "laplacian", "solution_errors", "value"]


def value(params: Params, points: jax.Array) -> jax.Array:
    """Values (n,) of a tanh network at points (n, axes)."""
    hidden = points
    last = len(params) // 2 - 1
    for index in range(last):
        hidden = jnp.tanh(affine(params, f"layers.{index}", hidden))
    return affine(params, f"layers.{last}", hidden)[:, 0]


def laplacian(params: Params, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values and the sum of second derivatives along all axes, both (n,), at points (n, axes).

    One forward pass carries value h, Jacobian J and Laplacian L through every layer (Li et al. 2024,
    "A computational framework for neural network-based variational Monte Carlo with Forward Laplacian"):
    a linear map acts on each alike, and ``t = tanh(h)`` gives ``L_t = t' L + t'' sum_axes J^2`` with
    ``t' = 1 - t^2`` and ``t'' = -2 t t'``.

    Example:
        >>> params = {"layers.0.weight": jnp.ones((1, 2)), "layers.0.bias": jnp.zeros(1)}
        >>> [array.tolist() for array in laplacian(params, jnp.ones((1, 2)))]
        [[2.0], [0.0]]
    """
    hidden = affine(params, "layers.0", points)
    first = params["layers.0.weight"].T[:, None, :]
    jacobian = jnp.broadcast_to(first, (points.shape[1], *hidden.shape))
    second = jnp.zeros_like(hidden)
    for index in range(1, len(params) // 2):
        t = jnp.tanh(hidden)
        slope = 1.0 - t * t
        second = slope * (second - 2.0 * t * (jacobian * jacobian).sum(axis=0))
        jacobian = slope * jacobian
        weight = params[f"layers.{index}.weight"].T
        hidden = affine(params, f"layers.{index}", t)
        second, jacobian = second @ weight, jacobian @ weight
    return hidden[:, 0], second[:, 0]


def solution_errors(
    loss_fn: Callable[[Params, Any], jax.Array], interior: int, exact: int
) -> Callable[[Params, Any, Iterable[Any]], dict[str, float]]:
    """Evaluation: mean loss, and the L2 error of the solution over its L2 norm.

    Args:
        loss_fn: Per-example losses (n,).
        interior: Position of the points (n, axes) in a batch.
        exact: Position of the exact solution there, (n,).
    """

    def sums(params: Params, state: Any, batch: Any) -> dict[str, jax.Array]:
        losses, wanted = loss_fn(params, batch), batch[exact]
        return {
            "loss": losses.sum(),
            "count": jnp.asarray(losses.size),
            "error": jnp.square(value(params, batch[interior]) - wanted).sum(),
            "norm": jnp.square(wanted).sum(),
        }

    def finish(totals: dict[str, float]) -> dict[str, float]:
        return {
            "loss": totals["loss"] / totals["count"],
            "relative_l2": math.sqrt(totals["error"] / totals["norm"]),
        }

    return evaluator(sums, finish)


def build_pinn(shape: Mapping[str, Any]) -> BuiltModel:
    """Network of ``shape``: widths, and boundary_weight, the weight of points on the edge."""
    boundary_weight = float(shape["boundary_weight"])

    def residual_fn(params: Params, batch: Any) -> jax.Array:
        """Weighted residuals (n + m,): their mean square is the interior one plus the weighted edge one."""
        interior, source, edge, wanted = map(jnp.asarray, batch[:4])
        n, m = len(interior), len(edge)
        residual = (laplacian(params, interior)[1] + source) * math.sqrt((n + m) / n)
        error = (value(params, edge) - wanted) * math.sqrt(boundary_weight * (n + m) / m)
        return jnp.concatenate([residual, error])

    def loss_fn(params: Params, batch: Any) -> jax.Array:
        return jnp.square(residual_fn(params, batch))

    evaluate = solution_errors(loss_fn, interior=0, exact=4)
    return BuiltModel(layer_shapes(shape["widths"]), loss_fn, evaluate, residual_fn=residual_fn)
