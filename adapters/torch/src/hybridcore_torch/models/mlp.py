"""Multilayer perceptron with ReLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hybridcore_torch.models.built import BuiltModel, classification

__all__ = ["Mlp", "build_mlp"]


class Mlp(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        widths: Sizes of input, hidden layers and output.

    Example:
        >>> Mlp((4, 8, 3))(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes) of inputs (n, features)."""
        hidden = inputs
        for layer in self.layers[:-1]:
            hidden = torch.relu(layer(hidden))
        logits: Tensor = self.layers[-1](hidden)
        return logits


def build_mlp(shape: Mapping[str, Any]) -> BuiltModel:
    """Classifier of ``shape["widths"]``."""
    return classification(Mlp(shape["widths"]))
