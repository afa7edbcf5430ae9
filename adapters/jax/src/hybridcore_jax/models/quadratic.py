"""A quadratic with known curvature and optimum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybridcore_jax.models.built import BuiltModel, Params, evaluator

__all__ = ["build_quadratic"]


def build_quadratic(shape: Mapping[str, Any]) -> BuiltModel:
    """``0.5 (w - w*)^T diag(h) (w - w*)`` of ``shape``: curvature h, optimum w*, noise.

    With noise, training batches hold the numbers to be added to the gradient; see
    `hybridcore.tasks.quadratic.noisy_batches`.
    """
    curvature, optimum = np.asarray(shape["curvature"]), np.asarray(shape["optimum"])
    noisy = bool(shape["noise"])

    def loss_fn(params: Params, batch: Any, *, training: bool) -> jax.Array:
        w = params["w"]
        gap = w - optimum.astype(w.dtype)
        loss = 0.5 * (gap * curvature.astype(w.dtype) * gap).sum()
        if training and noisy:  # no loss, but a gradient
            loss = loss + (batch[0] * (w - jax.lax.stop_gradient(w))).sum()
        return loss[None]

    evaluate = evaluator(
        lambda params, state, batch: {
            "loss": loss_fn(params, batch, training=False).sum(),
            "count": jnp.ones(()),
        },
        lambda totals: {"loss": totals["loss"] / totals["count"]},
    )
    return BuiltModel({"w": optimum.shape}, loss_fn, evaluate)
