"""Models of the built-in problems, one per file, built from a problem's sizes and initial weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from hybridcore.errors import TaskError
from hybridcore.protocols import Problem
from hybridcore_torch.models.built import BuiltModel, load_weights
from hybridcore_torch.models.cnn import build_cnn
from hybridcore_torch.models.convection import build_convection
from hybridcore_torch.models.lora import build_lora
from hybridcore_torch.models.mlp import build_mlp
from hybridcore_torch.models.pinn import build_pinn
from hybridcore_torch.models.quadratic import build_quadratic
from hybridcore_torch.models.softmax import build_softmax
from hybridcore_torch.models.transformer import build_transformer

__all__ = ["BuiltModel", "build_model"]

BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], BuiltModel]] = {
    "mlp": build_mlp,
    "cnn": build_cnn,
    "transformer": build_transformer,
    "lora-transformer": build_lora,
    "pinn": build_pinn,
    "convection": build_convection,
    "softmax": build_softmax,
    "quadratic": build_quadratic,
}


def build_model(problem: Problem, device: str | torch.device = "cpu") -> BuiltModel:
    """Model of a problem with its own initial weights, in their precision; leaves PyTorch's RNG untouched.

    Args:
        problem: The problem.
        device: Where its parameters lie.

    Raises:
        TaskError: The model is unknown, or weights and model do not have the same names and shapes.

    Example:
        >>> from hybridcore.tasks.digits_mlp import DigitsMlp
        >>> problem = DigitsMlp(DigitsMlp.Config(width=16)).problem(seed=0)
        >>> built = build_model(problem)
        >>> built.loss_fn(built.model, next(problem.batches())).shape
        torch.Size([32])
    """
    builder = BUILDERS.get(problem.model)
    if builder is None:
        raise TaskError(
            f"the PyTorch adapter does not know the model of task {problem.name!r}",
            where="problem.model",
            got=problem.model,
            expected=f"one of {', '.join(BUILDERS)}",
            fix="pip install --upgrade hybridcore-torch",
        )
    with torch.random.fork_rng(devices=[]):
        built = builder(problem.shape)
    if any(array.dtype == np.float64 for array in problem.weights.values()):
        built.model.double()
    load_weights(built.model, problem)
    built.model.to(device)
    return built
