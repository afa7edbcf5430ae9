"""What the models have in common: weights by name, batches as tensors, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybridcore.errors import TaskError
from hybridcore.protocols import Problem

__all__ = ["BuiltModel", "as_tensors", "classification", "evaluation_mode", "load_weights"]


class BuiltModel(NamedTuple):
    """A model and how it is judged.

    Attributes:
        model: The module.
        loss_fn: ``loss_fn(model, batch)`` gives per-example losses (n,); training uses their mean. The batch
            may hold NumPy arrays or tensors of any device.
        evaluate: ``evaluate(model, batches)`` gives mean metrics over all examples, ``"loss"`` first, in
            evaluation mode; modes, buffers and RNG of the model stay as they were.
        residual_fn: ``residual_fn(model, batch)`` gives residuals (n,) whose squares are the losses; None
            where the losses are no squares.
    """

    model: nn.Module
    loss_fn: Callable[[nn.Module, Any], Tensor]
    evaluate: Callable[[nn.Module, Iterable[Any]], dict[str, float]]
    residual_fn: Callable[[nn.Module, Any], Tensor] | None = None


def as_tensors(model: nn.Module, batch: Iterable[Any]) -> list[Tensor]:
    """Arrays of a batch as tensors on the model's device; no copy where none is needed."""
    device = next(model.parameters()).device
    return [torch.as_tensor(part, device=device) for part in batch]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context without gradients in evaluation mode; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def load_weights(model: nn.Module, problem: Problem) -> None:
    """Set every parameter to the problem's weight of the same name; buffers keep their defaults.

    Raises:
        TaskError: A name is missing or left over, or a shape differs; nothing was changed.
    """
    parameters = dict(model.named_parameters())
    mistakes = [f"no weight for {name}" for name in parameters.keys() - problem.weights.keys()]
    mistakes += [f"no parameter {name}" for name in problem.weights.keys() - parameters.keys()]
    mistakes += [
        f"{name} has shape {problem.weights[name].shape} instead of {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in problem.weights and problem.weights[name].shape != tuple(parameter.shape)
    ]
    if mistakes:
        raise TaskError(
            f"initial weights do not fit the model of task {problem.name!r}",
            where="problem.weights",
            got="; ".join(sorted(mistakes)),
            expected=f"{len(parameters)} arrays named and shaped like the model's parameters",
            fix="pip install --upgrade hybridcore hybridcore-torch",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(problem.weights[name].copy()))


def classification(model: nn.Module) -> BuiltModel:
    """A classifier: cross-entropy per example; metrics ``"loss"`` and ``"accuracy"``.

    Args:
        model: Maps inputs to logits (n, classes); batches are ``(inputs, classes (n,))``.
    """

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        inputs, classes = as_tensors(model, batch)
        return nn.functional.cross_entropy(model(inputs), classes, reduction="none")

    def evaluate(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        loss = correct = count = 0.0
        with evaluation_mode(model):
            for batch in batches:
                inputs, classes = as_tensors(model, batch)
                logits = model(inputs)
                loss += float(nn.functional.cross_entropy(logits, classes, reduction="sum"))
                correct += int((logits.argmax(dim=1) == classes).sum())
                count += len(classes)
        return {"loss": loss / count, "accuracy": correct / count}

    return BuiltModel(model, loss_fn, evaluate)
