"""Updates launched before it is known whether they may be made; the device itself leaves them out."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import SGD, Adagrad, Adam, AdamW

__all__ = ["Reading", "can_refuse", "update_unless"]


def can_refuse(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of the optimizer changes nothing where its attribute ``found_inf`` says so.

    PyTorch's fused optimizers do, for the sake of gradient scalers. Their first step makes their state, and
    that of `SGD` leaves a velocity behind that was never written, so a state has to be there before.
    """
    if not isinstance(optimizer, (SGD, Adam, AdamW, Adagrad)):
        return False
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    if isinstance(optimizer, SGD) and all(not group["momentum"] for group in optimizer.param_groups):
        return True
    learned = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    states = [optimizer.state.get(p) for p in learned]
    if isinstance(optimizer, SGD):
        return all(s and isinstance(s.get("momentum_buffer"), torch.Tensor) for s in states)
    return all(states)


@torch.no_grad()
def update_unless(
    optimizer: torch.optim.Optimizer, numbers: torch.Tensor, norm: torch.Tensor, limit: float | None
) -> None:
    """One step of an optimizer that can refuse, unless a number is not finite; nothing is waited for.

    Args:
        optimizer: The optimizer.
        numbers: All that has to be finite, shape (k,).
        norm: Euclidean norm of the gradient, shape ().
        limit: Norm to which the gradient is clipped, or None.
    """
    told: Any = optimizer
    told.found_inf = numbers.sum().isfinite().logical_not().float()
    if limit is not None:
        told.grad_scale = (norm.float() / limit).clamp(min=1.0)  # gradients are divided by it
    try:
        optimizer.step()
    finally:
        del told.found_inf
        if limit is not None:
            del told.grad_scale


class Reading:
    """Copies of a few numbers to the host, begun at one time and waited for at another.

    In the order of the work that makes them, in memory that the next copy uses again: one has to be
    waited for before the next is begun. `HostCopier` is for weights, which are copied beside the training.
    """

    def __init__(self) -> None:
        self._kept = torch.empty(0)
        self._done: torch.cuda.Event | None = None

    def begin(self, numbers: torch.Tensor) -> None:
        """Queue the copy of a vector behind the work that makes it."""
        if not numbers.is_cuda:
            self._kept = numbers
            return
        if self._kept.shape != numbers.shape or self._kept.dtype != numbers.dtype:
            self._kept = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._done = None
        self._kept.copy_(numbers, non_blocking=True)
        if self._done is None:
            make: Any = torch.cuda.Event
            self._done = make()
        assert self._done is not None
        self._done.record(torch.cuda.current_stream(numbers.device))

    def end(self) -> torch.Tensor:
        """Wait for the copy and give it; what was queued after it goes on."""
        if self._done is not None:
            self._done.synchronize()
        return self._kept
