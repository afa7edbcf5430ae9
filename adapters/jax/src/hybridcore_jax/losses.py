"""Calls the user's loss function: which keywords it takes, form of the result, typed errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hybridcore.errors import BatchError, HybridCoreError, ModelError, ProbeError

__all__ = ["LossCaller", "LossFunction"]

LossFunction = Callable[..., Any]
"""``loss_fn(params, batch)``, and any of the keywords that `LossCaller` lists."""

_KEYWORDS = ("state", "key", "training", "batch_statistics")


class LossCaller:
    """Losses of a batch from ``loss_fn(params, batch, ...)``; called inside compiled functions.

    The loss function gets those of these keywords that it names:

    - ``state``: the model's state; it then returns ``(losses, new state)``;
    - ``key``: a fresh random key (in probes always the same one);
    - ``training``: True in training steps, False in probes;
    - ``batch_statistics``: True where BatchNorm is to normalise by the batch's own statistics, which is in
      training and, since running statistics are stale right after a predicted change, in probes.

    Args:
        loss_fn: Returns per-example losses, shape (n,), or their mean.
        has_state: Whether there is a state.
        has_key: Whether there is a key.

    Raises:
        ModelError: The function takes a state or key that was not given.
    """

    def __init__(self, loss_fn: LossFunction, *, has_state: bool, has_key: bool) -> None:
        self._loss_fn = loss_fn
        parameters = inspect.signature(loss_fn).parameters.values()
        named = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        self.takes = frozenset(
            _KEYWORDS if any(p.kind is p.VAR_KEYWORD for p in parameters) else named & set(_KEYWORDS)
        )
        for word, given in (("state", has_state), ("key", has_key)):
            if word in named and not given:
                raise ModelError(
                    f"the loss function takes a {word}, but none was given",
                    where=f"loss_fn(..., {word})",
                    got=f"{word}=None",
                    expected="a PRNG key" if word == "key" else "the model's initial state",
                    fix=f"pass {word}={'jax.random.key(seed)' if word == 'key' else '...'}",
                )
        self.stateful = "state" in self.takes and has_state

    def __call__(
        self, params: Any, state: Any, key: Any, batch: Any, *, training: bool, batch_statistics: bool = True
    ) -> tuple[jax.Array, Any]:
        """Losses as the function returns them, and the new state.

        Raises:
            BatchError: The forward pass failed on this batch, or the result is no floating-point array.
            ModelError: The returned state is not like the one that was given.
        """
        given = {"state": state, "key": key, "training": training, "batch_statistics": batch_statistics}
        try:
            result = self._loss_fn(params, batch, **{k: v for k, v in given.items() if k in self.takes})
        except (HybridCoreError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            raise BatchError(
                f"the model cannot take this batch: {error}",
                where="loss_fn(params, batch)",
                got=_describe(batch),
                fix="look at the cause above; the weights are unchanged",
            ) from error
        if self.stateful:
            losses, state = self._with_state(result, state)
        else:
            losses = result
        if not isinstance(losses, jax.Array) or not jnp.issubdtype(losses.dtype, jnp.floating):
            raise BatchError(
                "the loss function returned no losses",
                where="loss_fn(params, batch)",
                got=_describe(losses),
                expected="a floating-point array of shape (n,)",
                fix="return per-example losses"
                + ("; a function that takes `state` returns (losses, new state)" if self.stateful else ""),
            )
        return losses, state

    def _with_state(self, result: Any, state: Any) -> tuple[Any, Any]:
        if not isinstance(result, tuple) or len(result) != 2:
            raise ModelError(
                "a loss function that takes a state must return it too",
                where="loss_fn(params, batch, state=...)",
                got=_describe(result),
                expected="(losses, new state)",
                fix="return losses, new_state",
            )
        losses, new = result
        if _kinds(new) != _kinds(state):
            raise ModelError(
                "the model's state has changed its structure",
                where="loss_fn(params, batch, state=...)",
                got=_describe(new),
                expected=_describe(state),
                fix="return a state with the same containers, shapes and dtypes",
            )
        return losses, new

    def per_example(
        self,
        params: Any,
        state: Any,
        key: Any,
        batch: Any,
        *,
        training: bool = False,
        batch_statistics: bool = True,
    ) -> jax.Array:
        """Losses of shape (n,); further axes are averaged.

        Raises:
            ProbeError: The loss function returns a single number.
        """
        losses, _ = self(params, state, key, batch, training=training, batch_statistics=batch_statistics)
        if losses.ndim == 0:
            raise ProbeError(
                "probes need per-example losses, but the loss function returns their mean",
                where="loss_fn(params, batch)",
                got="shape ()",
                expected="shape (n,)",
                fix="leave out the final mean; training takes it itself",
            )
        return losses.reshape(losses.shape[0], -1).mean(axis=1) if losses.ndim > 1 else losses


def _kinds(tree: Any) -> tuple[Any, list[Any]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


def _describe(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(_describe(v) for v in value[:4])})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_describe(v)}" for k, v in list(value.items())[:4]) + "}"
    return type(value).__name__
