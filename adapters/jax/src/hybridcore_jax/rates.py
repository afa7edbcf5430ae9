"""Learning rate and momentum of an optimizer that is only a pair of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hybridcore.errors import ModelError
from hybridcore_jax.trees import find_nodes, has_field, map_nodes

__all__ = ["LearningRate", "momentum_memory"]

_injected = has_field("hyperparams")
_counted = has_field("count")
_first_moment = has_field("mu", "trace")


def _hyperparameter(opt_state: Any, *names: str) -> Any:
    for node in find_nodes(opt_state, _injected):
        for name in names:
            if name in node.hyperparams:
                return node.hyperparams[name]
    return None


class LearningRate:
    """The rate of the latest update: injected into the optimizer's state, a number, or a schedule.

    Args:
        given: A number, a schedule of the update count as in optax, or None to look for
            `optax.inject_hyperparams` in the state.
        opt_state: The optimizer's state; counts in it say where a schedule begins.

    Raises:
        ModelError: The rate cannot be known.

    Example:
        >>> rate = LearningRate(optax.linear_schedule(1.0, 0.0, 4), opt_state=())
        >>> [rate.after(updates, ()) for updates in (0, 1, 2, 3)]
        [1.0, 1.0, 0.75, 0.5]
    """

    def __init__(self, given: float | Callable[[Any], Any] | None, opt_state: Any) -> None:
        self._injected = given is None
        if given is None and _hyperparameter(opt_state, "learning_rate") is None:
            raise ModelError(
                "the learning rate of an optax optimizer cannot be read from its state",
                where="learning_rate",
                got="None",
                expected="a number, a schedule, or an optimizer made by optax.inject_hyperparams",
                fix="pass learning_rate= to hybridize, the same as to the optimizer",
            )
        self._schedule: Callable[[int], Any]
        if callable(given):
            self._schedule = given
            compiled = jax.jit(given)
            try:
                compiled(0)
                self._schedule = compiled
            except Exception:
                given(0)  # a schedule in plain Python, quick as it is
        elif given is not None:
            value = float(given)
            self._schedule = lambda count: value
        counts = [int(jnp.max(node.count)) for node in find_nodes(opt_state, _counted)]
        self._start = max(counts, default=0)
        self._known = (-1, 0.0)

    def after(self, updates: int, opt_state: Any) -> float:
        """Rate of the latest of so many updates since the start; before the first, the rate it will have."""
        if self._injected:
            return float(_hyperparameter(opt_state, "learning_rate"))
        count = self._start + max(updates - 1, 0)
        if count != self._known[0]:
            self._known = (count, float(self._schedule(count)))
        return self._known[1]


def momentum_memory(optimizer: optax.GradientTransformation | None, params: Any, opt_state: Any) -> float:
    """Steps that the first moment remembers, ``1 / (1 - beta1)``; 1.0 without momentum.

    An optax optimizer does not tell its beta1, but every first moment is an affine function of the one
    before: with no gradient it goes from 0 to c and from 1 to beta1 + c. A copy of the optimizer on arrays
    of one element each is asked for both.

    Args:
        optimizer: The optimizer; None where only its state is known.
        params: The parameters.
        opt_state: Its state.
    """
    beta = _hyperparameter(opt_state, "b1", "momentum", "decay")
    if (
        beta is None
        and optimizer is not None
        and next(find_nodes(opt_state, _first_moment), None) is not None
    ):
        small = jax.tree.map(lambda x: jnp.zeros((1,) * x.ndim, x.dtype), params)
        rule = optax.with_extra_args_support(optimizer)
        state = rule.init(small)

        def next_moment(value: float) -> float:
            def fill(node: Any) -> Any:
                field = "mu" if hasattr(node, "mu") else "trace"
                moment = jax.tree.map(lambda x: jnp.full_like(x, value), getattr(node, field))
                return node._replace(**{field: moment})

            _, new = rule.update(
                small,
                map_nodes(fill, state, _first_moment),
                small,
                value=jnp.zeros(()),
                grad=small,
                value_fn=lambda p: jnp.zeros(()),
            )
            node = next(find_nodes(new, _first_moment))
            moment = node.mu if hasattr(node, "mu") else node.trace
            return float(jax.tree.leaves(moment)[0].reshape(-1)[0])

        beta = next_moment(1.0) - next_moment(0.0)
    return 1.0 / max(1.0 - float(beta or 0.0), 1e-9)
