"""Multinomial logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hybridcore_jax.models.built import BuiltModel, Params, evaluator

__all__ = ["build_softmax"]


def _loss(params: Params, batch: Any) -> jax.Array:
    """``-log p(y | x)`` per example, (n,)."""
    inputs, classes = batch
    logits = inputs.astype(params["weight"].dtype) @ params["weight"].T + params["bias"]
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    return losses


def build_softmax(shape: Mapping[str, Any]) -> BuiltModel:
    """Ten classes of 64 features; `shape` may hold other ``classes`` and ``features``."""
    classes, features = shape.get("classes", 10), shape.get("features", 64)

    def sums(params: Params, state: Any, batch: Any) -> dict[str, jax.Array]:
        losses = _loss(params, batch)
        return {"loss": losses.sum(), "count": jnp.asarray(losses.size)}

    mean = evaluator(sums, lambda totals: {"loss": totals["loss"] / totals["count"]})
    return BuiltModel({"weight": (classes, features), "bias": (classes,)}, _loss, mean)
