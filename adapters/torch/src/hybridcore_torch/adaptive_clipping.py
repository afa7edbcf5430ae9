"""Adaptive gradient clipping: gradients are measured against the weights that they change (F69)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["clip_units"]

FLOOR = 1e-3
"""Least norm that a unit's weights are taken to have, so that zero weights can grow."""


@torch.no_grad()
def clip_units(params: Iterable[torch.Tensor], ratio: float) -> None:
    """Shorten the gradient of each unit in place (Brock et al. 2021, equation 3).

    ``g_i <- g_i ratio max(|w_i|, FLOOR) / |g_i|`` where ``|g_i| > ratio max(|w_i|, FLOOR)``; unit i is what
    belongs to one index of the first axis, an output of a layer, or the whole of a vector. Gradients that
    are not finite stay so; sparse ones are left alone.

    Args:
        params: Parameters with a gradient.
        ratio: Largest norm of a gradient over the norm of its weights.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> weight.grad = torch.tensor([[3.0, 4.0], [0.03, 0.04]])
        >>> clip_units([weight], 0.1)
        >>> weight.grad
        tensor([[0.0600, 0.0800],
                [0.0300, 0.0400]])
    """
    for param in params:
        gradient = param.grad
        if gradient is None or gradient.is_sparse:
            continue
        limit = _unit_norm(param).clamp_(min=FLOOR).mul_(ratio)
        size = _unit_norm(gradient)
        gradient.mul_(torch.where(size > limit, limit / size, torch.ones_like(size)))


def _unit_norm(tensor: torch.Tensor) -> torch.Tensor:
    axes = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    norm: torch.Tensor = torch.linalg.vector_norm(tensor, dim=axes, keepdim=True)
    return norm
