"""Multinomial logistic regression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybridcore_torch.models.built import BuiltModel, as_tensors, evaluation_mode

__all__ = ["build_softmax"]


def _loss(model: nn.Module, batch: Any) -> Tensor:
    """``-log p(y | x)`` per example, (n,)."""
    inputs, classes = as_tensors(model, batch)
    return nn.functional.cross_entropy(model(inputs), classes, reduction="none")


def _evaluate(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    with evaluation_mode(model):
        losses = torch.cat([_loss(model, batch) for batch in batches])
    return {"loss": float(losses.mean())}


def build_softmax(shape: Mapping[str, Any]) -> BuiltModel:
    """Ten classes of 64 features; `shape` may hold other ``classes`` and ``features``.

    Example:
        >>> built = build_softmax({})
        >>> built.loss_fn(built.model, (torch.zeros(3, 64), torch.zeros(3, dtype=torch.int64))).shape
        torch.Size([3])
    """
    model = nn.Linear(shape.get("features", 64), shape.get("classes", 10))
    return BuiltModel(model, _loss, _evaluate)
