"""Adaptive gradient clipping: gradients are measured against the weights that they change (F69)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hybridcore_jax.parameters import Plan

__all__ = ["clip_units", "unit_axis"]

FLOOR = 1e-3
"""Least norm that a unit's weights are taken to have, so that zero weights can grow."""


def unit_axis(name: str) -> int:
    """Axis whose indices are the units of a parameter of two axes or more.

    Equinox and the built-in tasks call a matrix ``weight`` and keep outputs first; embeddings have a row per
    entry; flax keeps the outputs of a ``kernel`` last, as most hand-written layers do.

    Example:
        >>> unit_axis("layers.0.weight"), unit_axis("token.embedding"), unit_axis("head.kernel")
        (0, 0, -1)
    """
    return 0 if name.rsplit(".", 1)[-1] in {"weight", "embedding", "embeddings"} else -1


def clip_units(gradients: Any, params: Any, plan: Plan, ratio: Any) -> Any:
    """Gradients with each unit's shortened (Brock et al. 2021, equation 3).

    ``g_i <- g_i ratio max(|w_i|, FLOOR) / |g_i|`` where ``|g_i| > ratio max(|w_i|, FLOOR)``; unit i is what
    belongs to one output of a layer, or the whole of a vector. Gradients that are not finite stay so.

    Args:
        gradients: Tree of gradients.
        params: Tree of weights.
        plan: Names of the leaves.
        ratio: Largest norm of a gradient over the norm of its weights, a number or a traced scalar.
    """
    leaves = [
        _clip(g, w, unit_axis(name), ratio)
        for g, w, name in zip(jax.tree.leaves(gradients), jax.tree.leaves(params), plan.names, strict=True)
    ]
    return jax.tree.unflatten(plan.structure, leaves)


def _clip(gradient: Any, weights: Any, axis: int, ratio: Any) -> Any:
    limit = ratio * jnp.maximum(_unit_norm(weights, axis), FLOOR)
    size = _unit_norm(gradient, axis)
    factor = jnp.where(size > limit, limit / size, 1.0)
    return gradient * factor.astype(gradient.dtype)


def _unit_norm(array: Any, axis: int) -> Any:
    wide = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    axes = tuple(i for i in range(array.ndim) if array.ndim < 2 or i != axis % array.ndim)
    return jnp.sqrt((wide * wide).sum(axis=axes, keepdims=True))
