"""Physics-informed tanh network for a one-dimensional convection equation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridcore_torch.models.built import BuiltModel, as_tensors, evaluation_mode
from hybridcore_torch.models.pinn import TanhNetwork

__all__ = ["build_convection"]


def _residuals(beta: float, weight: float, model: nn.Module, batch: Any) -> Tensor:
    """Weighted residuals (n + m + k,): interior, initial values, periodicity.

    Their mean square is the interior mean square plus `weight` times each of the other two.
    """
    assert isinstance(model, TanhNetwork)
    interior, start, value, left, right = as_tensors(model, batch)[:5]
    parts = (
        model.derivative(interior, (beta, 1.0))[1],
        math.sqrt(weight) * (model(start) - value),
        math.sqrt(weight) * (model(left) - model(right)),
    )
    total = sum(len(part) for part in parts)
    return torch.cat([part * math.sqrt(total / len(part)) for part in parts])


def _loss(beta: float, weight: float, model: nn.Module, batch: Any) -> Tensor:
    return _residuals(beta, weight, model, batch).square()


def _evaluate(beta: float, weight: float, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """Mean loss, and the L2 error of the solution over its L2 norm."""
    total = count = error = norm = 0.0
    with evaluation_mode(model):
        for batch in batches:
            losses = _loss(beta, weight, model, batch)
            total += float(losses.sum())
            count += len(losses)
            interior, exact = as_tensors(model, (batch[0], batch[5]))
            error += float((model(interior) - exact).square().sum())
            norm += float(exact.square().sum())
    return {"loss": total / count, "relative_l2": math.sqrt(error / norm)}


def build_convection(shape: Mapping[str, Any]) -> BuiltModel:
    """Network of ``shape``: widths, beta, and boundary_weight, the weight of the two boundary terms."""
    beta, weight = float(shape["beta"]), float(shape["boundary_weight"])
    return BuiltModel(
        TanhNetwork(shape["widths"]),
        partial(_loss, beta, weight),
        partial(_evaluate, beta, weight),
        partial(_residuals, beta, weight),
    )
