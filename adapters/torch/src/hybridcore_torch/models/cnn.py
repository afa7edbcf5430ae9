"""Small convolutional classifier with batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybridcore_torch.models.built import BuiltModel, classification

__all__ = ["Cnn", "build_cnn"]


class Cnn(nn.Module):
    """Blocks of biasless 3x3 convolution, batch norm, ReLU and 2x2 max pooling; dropout; one linear layer.

    Args:
        filters: Filters of each block.
        size: Height and width of the images.
        classes: Number of classes.
        dropout: Share of features dropped before the linear layer while training.
        smooth: SiLU and average pooling instead of ReLU and max pooling.

    Example:
        >>> Cnn((4, 8), size=28, classes=10, dropout=0.0)(torch.zeros(2, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, filters: Sequence[int], size: int, classes: int, dropout: float, smooth: bool = False
    ) -> None:
        super().__init__()
        self.smooth = smooth
        channels = (1, *filters[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip(channels, filters, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in filters)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(filters[-1] * (size >> len(filters)) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, size, size)."""
        hidden = images.unsqueeze(1)
        activate = nn.functional.silu if self.smooth else torch.relu
        pool = nn.functional.avg_pool2d if self.smooth else nn.functional.max_pool2d
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = pool(activate(norm(convolution(hidden))), 2)
        logits: Tensor = self.head(self.dropout(hidden.flatten(1)))
        return logits


def build_cnn(shape: Mapping[str, Any]) -> BuiltModel:
    """Classifier of ``shape``: filters, size, classes, dropout, and optionally smooth."""
    sizes = (shape["filters"], shape["size"], shape["classes"], shape["dropout"])
    return classification(Cnn(*sizes, shape.get("smooth", False)))
