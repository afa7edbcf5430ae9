"""Multilayer perceptron with ReLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax

from hybridcore_jax.models.built import BuiltModel, Params, affine, classification

__all__ = ["build_mlp", "layer_shapes", "mlp_logits"]


def layer_shapes(widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of ``layers.0.weight`` (out, in), ``layers.0.bias`` (out,), and so on."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (a, b) in enumerate(pairwise(widths)):
        shapes |= {f"layers.{index}.weight": (b, a), f"layers.{index}.bias": (b,)}
    return shapes


def mlp_logits(params: Params, inputs: jax.Array) -> jax.Array:
    """Logits (n, classes) of inputs (n, features): linear layers with ReLU between them."""
    hidden = inputs
    last = len(params) // 2 - 1
    for index in range(last):
        hidden = jax.nn.relu(affine(params, f"layers.{index}", hidden))
    return affine(params, f"layers.{last}", hidden)


def build_mlp(shape: Mapping[str, Any]) -> BuiltModel:
    """Classifier of ``shape["widths"]``."""
    loss, evaluate = classification(lambda params, inputs, *_: (mlp_logits(params, inputs), None))
    return BuiltModel(
        layer_shapes(shape["widths"]),
        lambda params, batch: loss(params, batch, state=None, key=None, training=True, batch_statistics=True)[
            0
        ],
        evaluate,
    )
