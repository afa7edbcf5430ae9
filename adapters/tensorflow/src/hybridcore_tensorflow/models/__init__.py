"""Models of the built-in problems, one per file, built from a problem's sizes and initial weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hybridcore.errors import TaskError
from hybridcore.protocols import Problem
from hybridcore_tensorflow.models.built import BuiltModel, load_weights
from hybridcore_tensorflow.models.cnn import build_cnn
from hybridcore_tensorflow.models.convection import build_convection
from hybridcore_tensorflow.models.lora import build_lora
from hybridcore_tensorflow.models.mlp import build_mlp
from hybridcore_tensorflow.models.pinn import build_pinn
from hybridcore_tensorflow.models.precision import floats, widen
from hybridcore_tensorflow.models.quadratic import build_quadratic
from hybridcore_tensorflow.models.softmax import build_softmax
from hybridcore_tensorflow.models.transformer import build_transformer

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


def build_model(problem: Problem) -> BuiltModel:
    """Model of a problem with the problem's own initial weights, in their precision.

    Args:
        problem: The problem.

    Raises:
        TaskError: The model is unknown, or weights and model do not have the same names and shapes.

    Example:
        >>> from hybridcore.tasks.digits_mlp import DigitsMlp
        >>> problem = DigitsMlp(DigitsMlp.Config(width=16)).problem(seed=0)
        >>> built = build_model(problem)
        >>> tuple(built.loss_fn(built.model, next(problem.batches())).shape)
        (32,)
    """
    builder = BUILDERS.get(problem.model)
    if builder is None:
        raise TaskError(
            f"the TensorFlow adapter does not know the model of task {problem.name!r}",
            where="problem.model",
            got=problem.model,
            expected=f"one of {', '.join(BUILDERS)}",
            fix="pip install --upgrade hybridcore-tensorflow",
        )
    if any(array.dtype == np.float64 for array in problem.weights.values()):
        with floats("float64"):
            built = builder(problem.shape)
        widen(built.model)
    else:
        built = builder(problem.shape)
    load_weights(built.model, problem)
    return built
