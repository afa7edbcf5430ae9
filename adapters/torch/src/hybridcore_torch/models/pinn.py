"""Tanh network with derivatives along its inputs, and its use for a Poisson equation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hybridcore_torch.models.built import BuiltModel, as_tensors, evaluation_mode

__all__ = ["TanhNetwork", "build_pinn"]


class TanhNetwork(nn.Module):
    """Linear layers with tanh between them, and the Laplacian of their output.

    Args:
        widths: Sizes of input, hidden layers and output; the output has size 1.

    Example:
        >>> value, laplacian = TanhNetwork((2, 8, 1)).laplacian(torch.zeros(5, 2))
        >>> value.shape, laplacian.shape
        (torch.Size([5]), torch.Size([5]))
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, points: Tensor) -> Tensor:
        """Values (n,) at points (n, axes)."""
        hidden = points
        for layer in self.layers[:-1]:
            hidden = torch.tanh(layer(hidden))
        value: Tensor = self.layers[-1](hidden).squeeze(1)
        return value

    def laplacian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Values and the sum of second derivatives along all axes, both (n,), at points (n, axes).

        One forward pass carries value h, Jacobian J and Laplacian L through every layer (Li et al. 2024,
        "A computational framework for neural network-based variational Monte Carlo with Forward
        Laplacian"): a linear map acts on each alike, and ``t = tanh(h)`` gives
        ``L_t = t' L + t'' sum_axes J^2`` with ``t' = 1 - t^2`` and ``t'' = -2 t t'``. Unlike nested
        reverse passes it needs no graph, so that probes cost a forward only; training differentiates
        through it as usual.
        """
        functional = nn.functional
        hidden = self.layers[0](points)
        axes = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
        jacobian = functional.linear(axes, self._weight(0)).unsqueeze(1).expand(-1, len(points), -1)
        laplacian = torch.zeros_like(hidden)
        for index in range(1, len(self.layers)):
            value = torch.tanh(hidden)
            slope = 1.0 - value * value
            laplacian = slope * (laplacian - 2.0 * value * (jacobian * jacobian).sum(dim=0))
            jacobian = slope * jacobian
            hidden = self.layers[index](value)
            laplacian = functional.linear(laplacian, self._weight(index))
            jacobian = functional.linear(jacobian, self._weight(index))
        return hidden.squeeze(1), laplacian.squeeze(1)

    def derivative(self, points: Tensor, direction: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Values and derivatives along `direction`, both (n,), at points (n, axes).

        One forward pass carries value h and tangent T through every layer: a linear map acts on each alike,
        and ``t = tanh(h)`` gives ``T_t = (1 - t^2) T`` (forward-mode differentiation; no graph is needed).
        """
        functional = nn.functional
        along = torch.as_tensor(direction, dtype=points.dtype, device=points.device)
        hidden = self.layers[0](points)
        tangent = functional.linear(along, self._weight(0)).expand(len(points), -1)
        for index in range(1, len(self.layers)):
            value = torch.tanh(hidden)
            tangent = functional.linear((1.0 - value * value) * tangent, self._weight(index))
            hidden = self.layers[index](value)
        return hidden.squeeze(1), tangent.squeeze(1)

    def _weight(self, index: int) -> Tensor:
        weight: Tensor = self.layers[index].weight  # type: ignore[assignment]
        return weight


def _residuals(boundary_weight: float, model: nn.Module, batch: Any) -> Tensor:
    """Weighted residuals (n + m,): their mean square is the interior one plus the weighted edge one."""
    assert isinstance(model, TanhNetwork)
    interior, source, edge, value = as_tensors(model, batch)[:4]
    n, m = len(interior), len(edge)
    _, laplacian = model.laplacian(interior)
    residual = (laplacian + source) * math.sqrt((n + m) / n)
    error = (model(edge) - value) * math.sqrt(boundary_weight * (n + m) / m)
    return torch.cat([residual, error])


def _loss(boundary_weight: float, model: nn.Module, batch: Any) -> Tensor:
    return _residuals(boundary_weight, model, batch).square()


def _evaluate(boundary_weight: float, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """Mean loss, and the L2 error of the solution over its L2 norm."""
    total = count = error = norm = 0.0
    with evaluation_mode(model):
        for batch in batches:
            losses = _loss(boundary_weight, model, batch)
            total += float(losses.sum())
            count += len(losses)
            interior, _, _, _, exact = as_tensors(model, batch)
            error += float((model(interior) - exact).square().sum())
            norm += float(exact.square().sum())
    return {"loss": total / count, "relative_l2": math.sqrt(error / norm)}


def build_pinn(shape: Mapping[str, Any]) -> BuiltModel:
    """Network of ``shape``: widths, and boundary_weight, the weight of points on the edge."""
    weight = float(shape["boundary_weight"])
    return BuiltModel(
        TanhNetwork(shape["widths"]),
        partial(_loss, weight),
        partial(_evaluate, weight),
        partial(_residuals, weight),
    )
