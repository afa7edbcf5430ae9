"""The state that a step changes: our own, and ways into the user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import attrs

from hybridcore.errors import ModelError

__all__ = ["Access", "TrainState", "access_to"]


class TrainState(NamedTuple):
    """Everything that a training step changes, one pytree.

    Attributes:
        params: Parameters.
        opt_state: The optimizer's state.
        model_state: The model's own state, for example BatchNorm statistics; None without one.
        key: Random key; None without one.
    """

    params: Any
    opt_state: Any
    model_state: Any = None
    key: Any = None


@attrs.frozen
class Access:
    """How to reach parameters and optimizer state inside a train state.

    Attributes:
        get: ``get(state, field)``.
        put: ``put(state, field, value)`` gives a new state; the old one stays as it is.
    """

    get: Callable[[Any, str], Any]
    put: Callable[[Any, str, Any], Any]


def _put_tuple(state: Any, field: str, value: Any) -> Any:
    index = ("params", "opt_state").index(field)
    return (*state[:index], value, *state[index + 1 :])


def access_to(state: Any) -> Access:
    """Access to a named tuple, dataclass or mapping with ``params`` and ``opt_state``, or to a tuple of both.

    A plain tuple or list holds the parameters first and the optimizer's state second; anything may follow.

    Raises:
        ModelError: It is none of these.

    Example:
        >>> access_to({"params": 1, "opt_state": 2, "step": 3}).get({"params": 4}, "params")
        4
    """
    fields = ("params", "opt_state")
    if isinstance(state, tuple) and set(fields) <= set(getattr(state, "_fields", ())):
        return Access(getattr, lambda s, f, v: s._replace(**{f: v}))
    if isinstance(state, Mapping) and all(f in state for f in fields):
        return Access(lambda s, f: s[f], lambda s, f, v: type(s)({**s, f: v}))
    if dataclasses.is_dataclass(state) and all(hasattr(state, f) for f in fields):
        return Access(getattr, lambda s, f, v: dataclasses.replace(s, **{f: v}))
    if type(state) is tuple and len(state) >= 2:
        return Access(lambda s, f: s[fields.index(f)], _put_tuple)
    raise ModelError(
        "the train state does not show its parameters",
        where="hybridize(state, train_step=...)",
        got=type(state).__name__,
        expected="a tuple (params, opt_state, ...), or fields or keys 'params' and 'opt_state'",
        fix="carry (params, opt_state) through your train step",
    )
