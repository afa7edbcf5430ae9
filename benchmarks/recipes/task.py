"""A recipe as a task of its own: ``benchmarks.recipes.task:recipe``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.recipes.catalogue import named
from benchmarks.recipes.data import load, reshuffled
from benchmarks.recipes.models import build
from benchmarks.recipes.optimizers import make_optimizer, make_schedule
from benchmarks.repeatable import repeatable
from hybridcore.protocols import OptimizerSpec, TaskRun
from hybridcore.tasks.batches import ConvertedBatches
from hybridcore_torch import TorchAdapter
from hybridcore_torch.batches import to_device

__all__ = ["recipe"]


def recipe(
    framework: str,
    seed: int,
    device: str,
    *,
    recipe: str,
    steps: int,
    learning_rate: float,
    optimizer: str,
    schedule: str,
    weight_decay: float,
    data: str = "",
    order: int | None = None,
    make: Callable[[list[Any], OptimizerSpec], Any] | None = None,
) -> TaskRun:
    """A recipe's model, optimizer, schedule and data in PyTorch.

    Args:
        framework: Must be ``"torch"``.
        seed: Seeds initial weights, the order of examples and dropout.
        device: Device name.
        recipe: Name in the catalogue.
        steps: Steps of the run, over which schedules decay.
        learning_rate: Peak learning rate.
        optimizer: Its name.
        schedule: Its name.
        weight_decay: Weight decay.
        data: Folder of the data files.
        order: Seeds the order of examples instead of `seed`.
        make: Makes another optimizer than the recipe's own.
    """
    assert framework == "torch"
    found, place = named(recipe), torch.device(device)
    repeatable(place)
    source, built = load(found, Path(data) if data else None), build(found, seed)
    built.model.to(place)
    spec = OptimizerSpec(optimizer, learning_rate, 0.9, weight_decay, schedule, steps)
    for module in built.model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.is_embedding = True  # type: ignore[assignment]  # Muon leaves it to AdamW
    trainable = [p for p in built.model.parameters() if p.requires_grad]
    used = (make or partial(make_optimizer, found))(trainable, spec)
    epoch = max(1, round(steps / (found.epochs or 1)))
    rates = make_schedule(used, found, schedule, steps, epoch)
    adapter = TorchAdapter(
        built.model,
        used,
        built.loss_fn,
        scheduler=rates,
        max_grad_norm=found.max_grad_norm,
        residual_fn=built.residual_fn,
    )
    validation = [to_device(batch, place) for batch in source.validation]
    batches = source.batches(seed) if order is None else reshuffled(source, found, order)
    torch.manual_seed(seed)  # dropout; every arm draws alike
    return TaskRun(
        adapter=adapter,
        batches=ConvertedBatches(batches, partial(to_device, device=place)),
        probes=tuple(to_device(batch, place) for batch in source.probes),
        evaluate=lambda: built.evaluate(built.model, validation),
        schedule_step=rates.step if rates is not None else None,
    )
