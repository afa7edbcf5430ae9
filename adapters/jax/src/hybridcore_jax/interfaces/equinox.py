"""Equinox: ``loss_fn(model, batch)`` with the module itself, and its `State` where it has one."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from hybridcore.errors import ModelError
from hybridcore.layout import ParamGroup
from hybridcore_jax.interfaces.base import Parts, passes
from hybridcore_jax.losses import LossFunction
from hybridcore_jax.trees import named_leaves

__all__ = ["EquinoxModel"]

_NORMS = (eqx.nn.BatchNorm, eqx.nn.LayerNorm, eqx.nn.GroupNorm, eqx.nn.RMSNorm)


class EquinoxModel(Parts):
    """An equinox module; its floating-point arrays are the parameters, everything else stays as it is.

    ``loss_fn(model, batch)`` may also take ``key`` and, for stateful layers, ``state``, and then returns
    ``(losses, new state)``. In probes the model is in inference mode, except that BatchNorm normalises by
    the batch.

    Args:
        module: The module.
        state: What `equinox.nn.make_with_state` gave beside it, or None.

    Raises:
        ModelError: A BatchNorm layer normalises by running statistics in training (``mode="ema"``).
    """

    def __init__(self, module: Any, state: Any = None) -> None:
        self.params, self._static = eqx.partition(module, eqx.is_inexact_array)
        self.state = state
        self._norms = [m for m in _modules(module) if isinstance(m, eqx.nn.BatchNorm)]
        if any(norm.mode == "ema" for norm in self._norms):
            raise ModelError(
                "a BatchNorm layer trains with running statistics, which a predicted change makes stale",
                where="equinox.nn.BatchNorm(mode=...)",
                got="'ema'",
                expected="'batch'",
                fix='make it with mode="batch"',
            )
        self.groups = _groups(module, self.params)

    def bind(self, loss_fn: LossFunction) -> LossFunction:
        """The function on a module put together from parameters and the rest."""
        with_key = passes(loss_fn, "key")

        def run(params: Any, batch: Any, state: Any, key: Any, training: bool, own: bool) -> Any:
            module = eqx.combine(params, self._static)
            if not training:
                module = eqx.nn.inference_mode(module)
                if own and self._norms:
                    module = _batch_mode(module)
            given = {"key": key} if with_key else {}
            return loss_fn(module, batch, **given, **({} if state is None else {"state": state}))

        if self.state is None and with_key:
            return lambda params, batch, *, key, training: run(params, batch, None, key, training, True)
        if self.state is None:
            return lambda params, batch, *, training: run(params, batch, None, None, training, True)
        if with_key:
            return lambda params, batch, *, state, key, training, batch_statistics: run(
                params, batch, state, key, training, batch_statistics
            )
        return lambda params, batch, *, state, training, batch_statistics: run(
            params, batch, state, None, training, batch_statistics
        )

    def model(self, params: Any, state: Any) -> Any:
        """A module with these parameters; with its state, where there is one, as a pair."""
        module = eqx.combine(params, self._static)
        return module if state is None else (module, state)

    def settled(self, state: Any) -> Any:
        """The state with its statistics read as they are.

        In inference equinox divides by ``1 - momentum ** count``, since its statistics begin at zero; after
        they were estimated anew, a large count makes that 1.
        """
        for norm in self._norms:
            count = state.get(norm.batch_counter)
            state = state.set(norm.batch_counter, jnp.full_like(count, 2**30))
        return state


def _is_module(node: Any) -> bool:
    return isinstance(node, eqx.Module)


def _modules(tree: Any) -> list[Any]:
    """All modules inside a tree, itself included."""
    found = [tree] if _is_module(tree) else []
    children = jax.tree.leaves(tree, is_leaf=lambda x: x is not tree and _is_module(x))
    for child in children:
        if child is not tree and _is_module(child):
            found += _modules(child)
    return found


def _batch_mode(module: Any) -> Any:
    """The module with every BatchNorm normalising by the batch."""

    def norms(tree: Any) -> list[Any]:
        return [m.inference for m in _modules(tree) if isinstance(m, eqx.nn.BatchNorm)]

    return eqx.tree_at(norms, module, replace_fn=lambda _: False)


def _groups(module: Any, params: Any) -> dict[str, ParamGroup]:
    """Kinds of parameters by the layer that holds them."""
    kinds: dict[int, ParamGroup] = {}
    for layer in _modules(module):
        if isinstance(layer, (eqx.nn.Embedding, *_NORMS)):
            kind = ParamGroup.EMBEDDING if isinstance(layer, eqx.nn.Embedding) else ParamGroup.NORM
            kinds.update((id(x), kind) for x in jax.tree.leaves(layer))
    return {name: kinds[id(leaf)] for name, leaf in named_leaves(params) if id(leaf) in kinds}
