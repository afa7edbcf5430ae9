"""Optimizers and learning-rate schedules from words that every framework knows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from hybridcore.errors import TaskError
from hybridcore.protocols import OptimizerSpec

__all__ = ["build_optimizer", "build_schedule", "schedule_factor"]

_FUSED = {"cpu", "cuda", "mps", "xpu"}


def build_optimizer(params: Iterable[torch.nn.Parameter], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The optimizer of `spec`, fused where PyTorch has it for the device and dtype.

    Args:
        params: The parameters to train.
        spec: What to build.

    Raises:
        TaskError: The optimizer's name is unknown.
    """
    held = list(params)
    fused = all(p.device.type in _FUSED and p.is_floating_point() for p in held)
    common: dict[str, Any] = {
        "lr": spec.learning_rate,
        "weight_decay": spec.weight_decay,
        "fused": fused or None,
    }
    if spec.name == "sgd":
        return torch.optim.SGD(held, **common)
    if spec.name == "momentum":
        return torch.optim.SGD(held, momentum=spec.momentum, **common)
    if spec.name == "adam":
        return torch.optim.Adam(held, **common)
    if spec.name == "adamw":
        return torch.optim.AdamW(held, **common)
    if spec.name == "lbfgs":
        return _lbfgs(held, spec)
    raise TaskError(
        "the optimizer is unknown",
        where="optimizer.name",
        got=spec.name,
        expected="sgd, momentum, adam, adamw or lbfgs",
        fix="choose one of these in the task's options",
    )


def _lbfgs(held: list[torch.nn.Parameter], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Ten iterations a step, 50 pairs, strong Wolfe line search; it stops early only where it stands still.

    The iterations of one step share their evaluations; with one iteration a step each point would be
    evaluated twice.

    Raises:
        TaskError: Weight decay is asked for, which L-BFGS does not have.
    """
    if spec.weight_decay:
        raise TaskError(
            "L-BFGS has no weight decay",
            where="optimizer.weight_decay",
            got=spec.weight_decay,
            expected="0.0",
            fix="set task.weight_decay = 0.0, or choose another optimizer",
        )
    return torch.optim.LBFGS(
        held,
        lr=spec.learning_rate,
        max_iter=10,
        history_size=50,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )


def schedule_factor(spec: OptimizerSpec, step: int) -> float:
    """Learning rate at real step `step` (from 0) over the peak learning rate.

    Linear warm-up from ``1 / warmup_steps`` to 1, then a decay that reaches 0 at `total_steps`.

    Raises:
        TaskError: The schedule's name is unknown.

    Example:
        >>> schedule_factor(OptimizerSpec(schedule="cosine", total_steps=100), 50)
        0.5
    """
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    share = min(1.0, (step - spec.warmup_steps) / max(1, spec.total_steps - spec.warmup_steps))
    if spec.schedule == "constant":
        return 1.0
    if spec.schedule == "linear":
        return 1.0 - share
    if spec.schedule == "cosine":
        return round(0.5 * (1.0 + math.cos(math.pi * share)), 12)
    raise TaskError(
        "the learning-rate schedule is unknown",
        where="optimizer.schedule",
        got=spec.schedule,
        expected="constant, cosine or linear",
        fix="choose one of these in the task's options",
    )


def build_schedule(optimizer: torch.optim.Optimizer, spec: OptimizerSpec) -> LambdaLR | None:
    """The schedule of `spec`, to be stepped after every real step; None where the rate never changes.

    Raises:
        TaskError: The schedule's name is unknown.
    """
    schedule_factor(spec, spec.warmup_steps)
    if spec.schedule == "constant" and spec.warmup_steps == 0:
        return None
    return LambdaLR(optimizer, lambda step: schedule_factor(spec, step))
