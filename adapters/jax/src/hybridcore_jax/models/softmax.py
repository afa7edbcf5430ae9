"""Multinomial logistic regression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import optax

from hybridcore_jax.models.built import BuiltModel, Params, evaluator

__all__ = ["build_softmax"]


def _loss(params: Params, batch: Any) -> jax.Array:
    """``-log p(y | x)`` per example, (n,)."""
    inputs, classes = batch
    logits = inputs.astype(params["weight"].dtype) @ params["weight"].T + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, classes)


def build_softmax(shape: Mapping[str, Any]) -> BuiltModel:
    """Ten classes of 64 features; `shape` may hold other ``classes`` and ``features``."""
    classes, features = shape.get("classes", 10), shape.get("features", 64)
    mean = evaluator(
        lambda params, state, batch: {"loss": _loss(params, batch).sum(), "count": _loss(params, batch).size},
        lambda totals: {"loss": totals["loss"] / totals["count"]},
    )

    def evaluate(params: Params, state: Any, batches: Iterable[Any]) -> dict[str, float]:
        return mean(params, state, batches)

    return BuiltModel({"weight": (classes, features), "bias": (classes,)}, _loss, evaluate, double=True)
