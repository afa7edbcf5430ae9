"""Flax nnx: ``loss_fn(model, batch)`` with the module itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from hybridcore.layout import ParamGroup
from hybridcore_jax.interfaces.base import Parts, passes
from hybridcore_jax.losses import LossFunction

__all__ = ["NnxModel"]

_NORMS = (nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm, nnx.RMSNorm)


class NnxModel(Parts):
    """An nnx module, split once into parameters and all other state (statistics, random streams).

    The module stays the user's: `model` writes current values into it. In probes it is in evaluation mode,
    except that BatchNorm layers that learn their statistics normalise by the batch.

    Args:
        module: The module, in the mode it is trained in.
    """

    def __init__(self, module: nnx.Module) -> None:
        self._module = module
        self._definition: Any
        self._definition, self.params, self.state = _split(module)
        self.groups = _groups(module)

    def bind(self, loss_fn: LossFunction) -> LossFunction:
        """The function on a module put together from parameters and state."""
        with_key = passes(loss_fn, "key")

        def pure(
            params: Any,
            batch: Any,
            *,
            state: Any,
            key: Any,
            training: bool,
            batch_statistics: bool,
        ) -> tuple[Any, Any]:
            # Variables may be changed only at the trace level at which they were made: make them anew here.
            state = jax.tree.map(lambda x: x, state)
            module: Any = nnx.merge(self._definition, params, state)
            if not training:
                live = [m for _, m in _layers(module) if _learns(m)]
                module.eval()
                for norm in live:
                    norm.use_running_average = not batch_statistics
            losses = loss_fn(module, batch, **({"key": key} if with_key else {}))
            return losses, _split(module)[2]

        return pure if with_key else _without_key(pure)

    def model(self, params: Any, state: Any) -> Any:
        """The user's module with these values."""
        nnx.update(self._module, params, state)
        return self._module


def _without_key(pure: LossFunction) -> LossFunction:
    def keyless(params: Any, batch: Any, *, state: Any, training: bool, batch_statistics: bool) -> Any:
        return pure(
            params, batch, state=state, key=None, training=training, batch_statistics=batch_statistics
        )

    return keyless


def _split(module: Any) -> tuple[Any, Any, Any]:
    """Definition, parameters and all other state."""
    parts: Any = nnx.split(module, nnx.Param, ...)
    definition, params, state = parts
    return definition, params, state


def _layers(module: Any) -> Iterator[tuple[Any, Any]]:
    yield from nnx.iter_modules(module)


def _learns(module: Any) -> bool:
    return isinstance(module, nnx.BatchNorm) and not module.use_running_average


def _groups(module: nnx.Module) -> dict[str, ParamGroup]:
    """Kinds of parameters by the layer that holds them."""
    found: dict[str, ParamGroup] = {}
    for path, layer in _layers(module):
        kind = ParamGroup.EMBEDDING if isinstance(layer, nnx.Embed) else None
        kind = ParamGroup.NORM if isinstance(layer, _NORMS) else kind
        if kind is not None:
            for name, value in vars(layer).items():
                if isinstance(value, nnx.Param):
                    found[".".join(map(str, (*path, name)))] = kind
    return found
