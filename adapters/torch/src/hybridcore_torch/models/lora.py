"""Transformer whose block matrices are frozen and have trainable low-rank corrections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybridcore_torch.models.built import BuiltModel
from hybridcore_torch.models.transformer import Transformer, language_model

__all__ = ["LoraLinear", "build_lora"]


class LoraLinear(nn.Module):
    """``W x + b + (alpha / rank) B A x`` with frozen W and b (Hu et al., LoRA, ICLR 2022, section 4.1).

    Args:
        base: The layer that is corrected; its own parameters stop being trainable.
        rank: Rows of A.
        alpha: Scale of the correction times the rank.

    Example:
        >>> layer = LoraLinear(torch.nn.Linear(3, 5), rank=2, alpha=4.0)
        >>> [name for name, p in layer.named_parameters() if p.requires_grad]
        ['lora_a', 'lora_b']
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.lora_a = nn.Parameter(torch.zeros(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (..., in) to (..., out)."""
        functional = nn.functional
        low = functional.linear(inputs, self.lora_a)
        return functional.linear(inputs, self.weight, self.bias) + self.scale * functional.linear(
            low, self.lora_b
        )


def build_lora(shape: Mapping[str, Any]) -> BuiltModel:
    """Frozen language model of ``shape`` with corrections of ``rank`` and ``alpha`` on all block matrices."""
    model = Transformer(shape["vocabulary"], shape["context"], shape["width"], shape["depth"], shape["heads"])
    model.requires_grad_(False)
    for block in model.blocks:
        for part, leaf in (
            (block.attention, "qkv"),
            (block.attention, "out"),
            (block.mlp, "up"),
            (block.mlp, "down"),
        ):
            setattr(part, leaf, LoraLinear(getattr(part, leaf), shape["rank"], shape["alpha"]))
    return language_model(model)
