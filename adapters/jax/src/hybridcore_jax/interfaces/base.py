"""What the adapter asks of a model, and the plain case: a pytree of parameters."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from hybridcore.layout import ParamGroup
from hybridcore_jax.losses import LossFunction

__all__ = ["Parts", "PureModel", "is_kind", "passes"]


class Parts(ABC):
    """A model taken apart.

    Attributes:
        params: Trainable parameters, a pytree of arrays.
        state: Its own state, a pytree of arrays, or None.
        groups: Kinds of parameters by name, where the library tells them.
    """

    params: Any
    state: Any = None
    groups: Mapping[str, ParamGroup] = {}

    @abstractmethod
    def bind(self, loss_fn: LossFunction) -> LossFunction:
        """The user's loss function as a pure one, in the form that `LossCaller` describes."""

    @abstractmethod
    def model(self, params: Any, state: Any) -> Any:
        """The user's own kind of model with these parameters and this state."""

    def settled(self, state: Any) -> Any:
        """The state after its running statistics were estimated anew."""
        return state


class PureModel(Parts):
    """A pytree of parameters whose loss function is pure already.

    Args:
        params: The parameters.
        state: The state that the loss function takes and returns, or None.
    """

    def __init__(self, params: Any, state: Any = None) -> None:
        self.params, self.state = params, state

    def bind(self, loss_fn: LossFunction) -> LossFunction:
        """The function itself."""
        return loss_fn

    def model(self, params: Any, state: Any) -> Any:
        """The parameters."""
        return params


def is_kind(model: Any, package: str, name: str) -> bool:
    """Whether the model's type derives from a class of this name in this package; imports nothing."""
    return any(
        kind.__name__ == name and (kind.__module__ + ".").startswith(package + ".")
        for kind in type(model).__mro__
    )


def passes(loss_fn: LossFunction, word: str) -> bool:
    """Whether a loss function takes a keyword of this name."""
    parameters = inspect.signature(loss_fn).parameters
    return word in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
