"""Transformer whose block matrices are frozen and have trainable low-rank corrections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from hybridcore_jax.models.built import BuiltModel, Params, affine
from hybridcore_jax.models.transformer import block_matrices, language_model, transformer_shapes

__all__ = ["build_lora", "corrected"]


def corrected(params: Params, name: str, inputs: jax.Array, scale: float) -> jax.Array:
    """``W x + b + scale B A x`` with ``scale = alpha / rank`` (Hu et al., LoRA, ICLR 2022, section 4.1).

    Args:
        params: ``weight`` (out, in), ``bias`` (out,), ``lora_a`` (rank, in) and ``lora_b`` (out, rank).
        name: Name of the layer.
        inputs: Shape (..., in).
        scale: Factor of the correction.
    """
    low = inputs @ params[f"{name}.lora_a"].T
    return affine(params, name, inputs) + scale * (low @ params[f"{name}.lora_b"].T)


def build_lora(shape: Mapping[str, Any]) -> BuiltModel:
    """Frozen language model of ``shape`` with corrections of ``rank`` and ``alpha`` on all block matrices."""
    rank, scale = shape["rank"], shape["alpha"] / shape["rank"]

    def layer(params: Params, name: str, inputs: jax.Array) -> jax.Array:
        return corrected(params, name, inputs, scale)

    shapes = transformer_shapes(shape)
    for name, (fan_out, fan_in) in block_matrices(shape).items():
        shapes |= {f"{name}.lora_a": (rank, fan_in), f"{name}.lora_b": (fan_out, rank)}
    built = language_model(shape, shapes, layer)
    return built._replace(trainable=lambda name: name.endswith(("lora_a", "lora_b")))
