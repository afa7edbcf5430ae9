"""A Keras optimizer on the torch backend, seen as one of PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hybridcore.errors import ModelError

__all__ = ["KerasOptimizer"]

_NAMES = {"momentum": "exp_avg", "velocity": "exp_avg_sq", "accumulator": "sum"}


class KerasOptimizer(torch.optim.Optimizer):
    """Gives the adapter hooks, rates and state; the update itself is Keras' own.

    Every variable that a step of the model changes is in its state, also moving statistics and the states of
    random generators, so that snapshots and rollbacks reach all of them in place. SGD's velocity points the
    other way than PyTorch's, which `maximize` tells the rule for jumps.

    Args:
        model: A built and compiled model.

    Raises:
        ModelError: The learning rate is a schedule, which the engine could not lower.
    """

    def __init__(self, model: Any) -> None:
        keras_optimizer = model.optimizer
        # Not the instance's, which an interrupted fit may have left replaced.
        self._apply: Callable[..., Any] = partial(type(keras_optimizer).apply, keras_optimizer)
        self._arguments: tuple[Any, ...] = ()
        trainable = list(model.trainable_variables)
        beta = getattr(keras_optimizer, "beta_1", None) or getattr(keras_optimizer, "momentum", None) or 0.0
        super().__init__(
            [v.value for v in trainable],
            {"lr": _rate(keras_optimizer), "momentum": float(beta), "maximize": True},
        )
        first = self.state[trainable[0].value]
        owners = {v.path.replace("/", "_"): self.state[v.value] for v in trainable}
        plain_momentum = type(keras_optimizer).__name__ == "SGD"
        for variable in keras_optimizer.variables:
            name = variable.path.rpartition("/")[2]
            owner, _, kind = name.rpartition("_")
            key = "momentum_buffer" if plain_momentum and kind == "momentum" else _NAMES.get(kind, kind)
            if owner in owners and key not in owners[owner]:
                owners[owner][key] = variable.value.detach()
            else:
                first[f"keras:{variable.path}"] = variable.value.detach()
        for index, variable in enumerate(model.non_trainable_variables):
            first[f"model:{index}"] = variable.value.detach()

    def apply(self, gradients: Any, variables: Any = None) -> None:
        """Stands in for the Keras optimizer's method during `fit`: the same update, between the hooks."""
        self._arguments = (gradients, variables)
        try:
            self.step()
        finally:
            self._arguments = ()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keras' own update."""
        with torch.no_grad():
            self._apply(*self._arguments)


def _rate(optimizer: Any) -> torch.Tensor:
    value = getattr(optimizer._learning_rate, "value", None)
    if not isinstance(value, torch.Tensor):
        raise ModelError(
            "a schedule inside the optimizer is out of the engine's reach",
            where="model.compile(optimizer=...)",
            got=type(optimizer._learning_rate).__name__,
            expected="a number as learning_rate",
            fix="use keras.callbacks.LearningRateScheduler instead",
        )
    return value.detach()
