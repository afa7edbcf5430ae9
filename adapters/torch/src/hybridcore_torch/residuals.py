"""Residuals of a batch and their derivatives along changes of the weights, in forward mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.torch
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hybridcore.layout import Buckets, ParamLayout

__all__ = ["linearise"]


class _Residuals(nn.Module):
    """A model with its residual function as forward, so that its weights can be given from outside."""

    def __init__(self, model: nn.Module, residual_fn: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self.model, self._residual_fn = model, residual_fn

    def forward(self, batch: Any) -> torch.Tensor:
        return self._residual_fn(self.model, batch)


def linearise(
    model: nn.Module,
    residual_fn: Callable[[Any, Any], torch.Tensor],
    batch: Any,
    layout: ParamLayout,
    directions: Sequence[Buckets],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Residuals (n,) at the model's weights and Jacobian-vector products (n, k).

    Args:
        model: The model itself, not its wrapper.
        residual_fn: ``residual_fn(model, batch)`` gives residuals (n,).
        batch: The batch.
        layout: Which parameters the directions change.
        directions: k changes as buckets.
    """
    call = _Residuals(model, residual_fn)
    parameters = dict(model.named_parameters())
    weights = {f"model.{p.name}": parameters[p.name].detach() for p in layout.params}
    changes = [layout.unpack(buckets, array_api_compat.torch) for buckets in directions]
    tangents = {
        f"model.{p.name}": torch.stack([change[p.name].to(parameters[p.name].dtype) for change in changes])
        for p in layout.params
    }

    def residuals(named: dict[str, torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = torch.func.functional_call(call, named, (batch,))
        return result

    def along(tangent: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        value, product, *_ = torch.func.jvp(residuals, (weights,), (tangent,))
        return value, product

    out: Any = (None, 0)  # the residuals do not depend on the direction
    with torch.no_grad():
        values, products = torch.func.vmap(along, out_dims=out)(tangents)
    return (
        values.to("cpu", torch.float64).numpy(),
        products.T.to("cpu", torch.float64).contiguous().numpy(),
    )
