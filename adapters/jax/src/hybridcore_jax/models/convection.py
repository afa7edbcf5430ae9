"""Physics-informed tanh network for a one-dimensional convection equation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hybridcore_jax.models.built import BuiltModel, Params
from hybridcore_jax.models.mlp import layer_shapes
from hybridcore_jax.models.pinn import solution_errors, value

__all__ = ["build_convection"]


def build_convection(shape: Mapping[str, Any]) -> BuiltModel:
    """Network of ``shape``: widths, beta, and boundary_weight, the weight of the two boundary terms."""
    beta, weight = float(shape["beta"]), float(shape["boundary_weight"])

    def residual_fn(params: Params, batch: Any) -> jax.Array:
        """Weighted residuals (n + m + k,): interior, initial values, periodicity.

        Their mean square is the interior mean square plus `boundary_weight` times each of the other two.
        """
        interior, start, wanted, left, right = map(jnp.asarray, batch[:5])
        along = jnp.broadcast_to(jnp.asarray([beta, 1.0], interior.dtype), interior.shape)
        parts = (
            jax.jvp(lambda points: value(params, points), (interior,), (along,))[1],
            math.sqrt(weight) * (value(params, start) - wanted),
            math.sqrt(weight) * (value(params, left) - value(params, right)),
        )
        total = sum(len(part) for part in parts)
        return jnp.concatenate([part * math.sqrt(total / len(part)) for part in parts])

    def loss_fn(params: Params, batch: Any) -> jax.Array:
        return jnp.square(residual_fn(params, batch))

    evaluate = solution_errors(loss_fn, interior=0, exact=5)
    return BuiltModel(layer_shapes(shape["widths"]), loss_fn, evaluate, residual_fn=residual_fn)
