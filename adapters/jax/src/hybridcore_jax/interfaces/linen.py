"""Flax linen: ``loss_fn(model, batch)`` where ``model(inputs)`` applies the module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from hybridcore.errors import ModelError
from hybridcore.layout import ParamGroup, guess_group
from hybridcore_jax.interfaces.base import Parts, passes
from hybridcore_jax.losses import LossFunction
from hybridcore_jax.trees import named_leaves

__all__ = ["LinenModel", "refuse_bare_module"]

_TRAINING = ("train", "training", "is_training")
_EVALUATION = ("deterministic", "use_running_average")


class LinenModel(Parts):
    """A linen module with its variables.

    The loss function gets a callable: ``model(*inputs)`` is ``module.apply`` with current variables, random
    keys, and the module's own word for its mode (``train``, ``training``, ``is_training``, or the opposite,
    ``deterministic`` or ``use_running_average``), whichever its ``__call__`` takes.

    Args:
        module: The module.
        variables: What ``module.init`` gave: ``"params"``, and further collections as state.
        rngs: Names of the random streams it draws from in training; the adapter then needs a key.

    Example:
        >>> import jax.numpy as jnp
        >>> module = nn.Dense(1)
        >>> model = LinenModel(module, module.init(jax.random.key(0), jnp.ones((1, 3))))
        >>> sorted(model.params)
        ['bias', 'kernel']
    """

    def __init__(self, module: nn.Module, variables: Mapping[str, Any], rngs: tuple[str, ...] = ()) -> None:
        if "params" not in variables:
            raise ModelError(
                "the variables of a linen module have no parameters",
                where="LinenModel(module, variables)",
                got=f"collections {', '.join(variables) or 'none'}",
                expected="a collection 'params'",
                fix="pass what module.init(key, inputs) returned",
            )
        self._module, self._rngs = module, rngs
        self.params = variables["params"]
        rest = {name: value for name, value in variables.items() if name != "params"}
        self.state = rest or None
        self.groups = {
            name: ParamGroup.EMBEDDING if name.endswith("embedding") else guess_group(name, leaf.shape)
            for name, leaf in named_leaves(self.params)
        }
        takes = inspect.signature(type(module).__call__).parameters
        self._mode: Callable[[bool], dict[str, bool]] = lambda training: {
            **{word: training for word in _TRAINING if word in takes},
            **{word: not training for word in _EVALUATION if word in takes},
        }

    def bind(self, loss_fn: LossFunction) -> LossFunction:
        """The function on a callable that applies the module."""
        with_key = passes(loss_fn, "key")

        def run(params: Any, batch: Any, state: Any, key: Any, training: bool) -> Any:
            current = dict(state or {})
            own, *keys = jax.random.split(key, 1 + len(self._rngs)) if key is not None else [None]

            def model(*inputs: Any, **options: Any) -> Any:
                options = {**self._mode(training), **options}
                rngs = dict(zip(self._rngs, keys, strict=True)) if training else {}
                variables = {"params": params, **current}
                if not current or not training:
                    return self._module.apply(variables, *inputs, rngs=rngs, **options)
                result, changed = self._module.apply(
                    variables, *inputs, rngs=rngs, mutable=list(current), **options
                )
                current.update(changed)
                return result

            losses = loss_fn(model, batch, **({"key": own} if with_key else {}))
            return losses if state is None else (losses, current)

        needs_key = with_key or bool(self._rngs)
        if self.state is None and not needs_key:
            return lambda params, batch, *, training: run(params, batch, None, None, training)
        if self.state is None:
            return lambda params, batch, *, key, training: run(params, batch, None, key, training)
        if not needs_key:
            return lambda params, batch, *, state, training: run(params, batch, state, None, training)
        return lambda params, batch, *, state, key, training: run(params, batch, state, key, training)

    def model(self, params: Any, state: Any) -> Any:
        """The variables, ready for ``module.apply``."""
        return {"params": params, **(state or {})}


def refuse_bare_module(module: Any) -> ModelError:
    """The error for a linen module without its variables."""
    return ModelError(
        "a linen module holds no parameters of its own",
        where="model",
        got=type(module).__name__,
        expected="a module with its variables",
        fix="pass LinenModel(module, module.init(key, inputs))",
    )
