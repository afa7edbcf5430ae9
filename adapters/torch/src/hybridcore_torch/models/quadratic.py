"""A quadratic with known curvature and optimum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybridcore_torch.models.built import BuiltModel, as_tensors, evaluation_mode

__all__ = ["Quadratic", "build_quadratic"]


class Quadratic(nn.Module):
    """``0.5 (w - w*)^T diag(h) (w - w*)``.

    Args:
        curvature: h, shape (n,).
        optimum: w*, shape (n,).

    Example:
        >>> Quadratic([1.0, 4.0], [0.0, 1.0])().tolist()
        [2.0]
    """

    curvature: Tensor
    optimum: Tensor

    def __init__(self, curvature: Any, optimum: Any) -> None:
        super().__init__()
        # Buffers outside `state_dict`: they are the problem's, not the model's state.
        for name, values in (("curvature", curvature), ("optimum", optimum)):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float64), persistent=False)
        self.w = nn.Parameter(torch.zeros(len(self.optimum)))

    def forward(self) -> Tensor:
        """The loss at the weights, shape (1,)."""
        gap = self.w - self.optimum.to(self.w.dtype)
        return 0.5 * (gap * self.curvature.to(self.w.dtype) * gap).sum(dim=0, keepdim=True)


def build_quadratic(shape: Mapping[str, Any]) -> BuiltModel:
    """Quadratic of `shape`: curvature, optimum, noise.

    With noise, training batches hold the numbers to be added to the gradient; see
    `hybridcore.tasks.quadratic.noisy_batches`.
    """
    noisy = bool(shape["noise"])

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, Quadratic)
        loss = model()
        if noisy and torch.is_grad_enabled():  # no loss, but a gradient
            (noise,) = as_tensors(model, batch)
            loss = loss + (noise.to(model.w.dtype) * (model.w - model.w.detach())).sum()
        result: Tensor = loss
        return result

    def evaluate(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        with evaluation_mode(model):
            return {"loss": float(model())}

    return BuiltModel(Quadratic(shape["curvature"], shape["optimum"]), loss_fn, evaluate)
