"""Re-estimation of BatchNorm statistics after the weights have moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from hybridcore_torch.modes import BufferGuard, tracked_norms
from hybridcore_torch.tensors import clone_all

__all__ = ["refresh"]


def refresh(
    base: nn.Module, guard: BufferGuard, forward: Callable[[Any], Any], batches: Iterable[Any]
) -> None:
    """Replace running means and variances by their plain average over batches; batch counts stay.

    Args:
        base: The model; modules keep their modes.
        guard: Knows the model's buffers, of which all others come out unchanged.
        forward: Runs the model on a batch.
        batches: Batches; none leave everything as it was.
    """
    norms = [m for m in tracked_norms(base) if m.running_mean is not None and m.running_var is not None]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    live = guard.buffers()
    former = dict(zip(live, clone_all(list(live.values())), strict=True))
    statistics = {id(t) for m in norms for t in (m.running_mean, m.running_var)}
    done = False
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's own word for the cumulative average
        for batch in batches:
            forward(batch)
            done = True
    except BaseException:
        done = False
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        finite = done and all(bool(torch.isfinite(t).all()) for i, t in live.items() if id(t) in statistics)
        for index, tensor in live.items():
            if not finite or id(tensor) not in statistics:
                tensor.copy_(former[index])
