"""Scaling of learning rates so that no scheduler takes it back (F40)."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["scale_rates"]

_GROUP_KEYS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_SCHEDULER_KEYS = ("base_lrs", "max_lrs", "eta_min", "_last_lr")


def scale_rates(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Multiply all rates of an optimizer, and everything that a scheduler makes later rates of.

    PyTorch's schedulers compute a rate either from the one before (``group["lr"]``) or anew from what they
    keep: ``base_lrs`` (`LambdaLR`, `CosineAnnealingWarmRestarts`, `CyclicLR`), ``initial_lr``, ``max_lr`` and
    ``min_lr`` of the group (`OneCycleLR`), and ``eta_min``. Schedulers of schedulers (`SequentialLR`,
    `ChainedScheduler`) are followed. The floor of `ReduceLROnPlateau` is the user's and stays.

    Args:
        optimizer: Its groups are changed in place.
        scheduler: A scheduler, or None.
        factor: Above 0.

    Example:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
        >>> scale_rates(optimizer, scheduler, 0.5)
        >>> optimizer.step()
        >>> scheduler.step()
        >>> optimizer.param_groups[0]["lr"]
        0.25
    """
    for group in optimizer.param_groups:
        _scale(group, _GROUP_KEYS, factor)
    _scale_scheduler(scheduler, factor, set())


def _scale_scheduler(scheduler: Any, factor: float, seen: set[int]) -> None:
    if scheduler is None or id(scheduler) in seen:
        return
    seen.add(id(scheduler))
    _scale(vars(scheduler), _SCHEDULER_KEYS, factor)
    for inner in getattr(scheduler, "_schedulers", ()):
        _scale_scheduler(inner, factor, seen)


def _scale(values: dict[str, Any], keys: tuple[str, ...], factor: float) -> None:
    for key in keys:
        if key in values:
            values[key] = _scaled(values[key], factor)


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, torch.Tensor):
        return value.mul_(factor)  # graphs and fused kernels hold on to the tensor itself
    if isinstance(value, list | tuple):
        return type(value)(_scaled(item, factor) for item in value)
    return value * factor if isinstance(value, int | float) else value
