"""Optimizers and schedules of the recipes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.recipes.catalogue import Recipe
from hybridcore.protocols import OptimizerSpec
from hybridcore_torch.optimizers import build_optimizer

__all__ = ["factor", "make_optimizer", "make_schedule"]


def make_optimizer(
    recipe: Recipe, parameters: list[torch.nn.Parameter], spec: OptimizerSpec
) -> torch.optim.Optimizer:
    """The recipe's optimizer at the spec's rate, fused where PyTorch has that."""
    rate, decay = spec.learning_rate, spec.weight_decay
    if spec.name == "adadelta":
        return torch.optim.Adadelta(parameters, lr=rate, weight_decay=decay)
    if spec.name not in ("adam", "adamw"):
        return build_optimizer(parameters, spec)
    kind = torch.optim.AdamW if spec.name == "adamw" else torch.optim.Adam
    groups: Iterable[Any] = parameters
    if recipe.model == "nanogpt":  # decays matrices and embeddings only
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    return kind(groups, lr=rate, betas=recipe.betas, eps=recipe.eps, weight_decay=decay, fused=True)


def factor(recipe: Recipe, schedule: str, steps: int, epoch: int) -> Callable[[int], float]:
    """Learning rate at a real step, from 0, over the peak one.

    Args:
        recipe: Gives warm-up, floor and gamma.
        schedule: ``constant``, ``linear``, ``cosine`` or ``step``.
        steps: Steps of the run.
        epoch: Steps of an epoch; read by ``step``.
    """
    warmup = round(recipe.warmup * steps)
    floor = recipe.floor if schedule == recipe.schedule else 0.0

    def at(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if schedule == "constant":
            return 1.0
        if schedule == "step":
            return recipe.gamma ** (step // epoch)
        share = min(1.0, (step - warmup) / max(1, steps - warmup))
        down = share if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * share))
        return 1.0 - (1.0 - floor) * down

    return at


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, schedule: str, steps: int, epoch: int
) -> LambdaLR | None:
    """The schedule, to be stepped after every real step; None where the rate never changes."""
    if schedule == "constant" and not recipe.warmup:
        return None
    return LambdaLR(optimizer, factor(recipe, schedule, steps, epoch))
