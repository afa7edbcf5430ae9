"""Transformer whose block matrices are frozen and have trainable low-rank corrections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from hybridcore_tensorflow.models.built import BuiltModel, Dense
from hybridcore_tensorflow.models.transformer import Transformer, language_model

__all__ = ["LoraDense", "build_lora"]


class LoraDense(tf.Module):
    """``W x + b + (alpha / rank) B A x`` with frozen W and b (Hu et al., LoRA, ICLR 2022, section 4.1).

    Args:
        base: The frozen layer that is corrected.
        rank: Rows of A.
        alpha: Scale of the correction times the rank.

    Example:
        >>> layer = LoraDense(Dense(3, 5, trainable=False), rank=2, alpha=4.0)
        >>> [tuple(variable.shape) for variable in layer.trainable_variables]
        [(2, 3), (5, 2)]
    """

    def __init__(self, base: Dense, rank: int, alpha: float) -> None:
        super().__init__()
        fan_out, fan_in = base.weight.shape
        self.weight, self.bias = base.weight, base.bias
        self.lora_a = tf.Variable(tf.zeros((rank, fan_in)))
        self.lora_b = tf.Variable(tf.zeros((fan_out, rank)))
        self._base, self._scale = base, alpha / rank

    def __call__(self, inputs: Any) -> Any:
        """Map inputs (..., in) to (..., out)."""
        low = tf.einsum("...i,ri->...r", inputs, self.lora_a)
        return self._base(inputs) + self._scale * tf.einsum("...r,or->...o", low, self.lora_b)


def build_lora(shape: Mapping[str, Any]) -> BuiltModel:
    """Frozen language model of ``shape`` with corrections of ``rank`` and ``alpha`` on all block matrices."""
    sizes = (shape["vocabulary"], shape["context"], shape["width"], shape["depth"], shape["heads"])
    model = Transformer(*sizes, trainable=False)
    for block in model.blocks:
        for part, leaf in (
            (block.attention, "qkv"),
            (block.attention, "out"),
            (block.mlp, "up"),
            (block.mlp, "down"),
        ):
            setattr(part, leaf, LoraDense(getattr(part, leaf), shape["rank"], shape["alpha"]))
    return language_model(model)
