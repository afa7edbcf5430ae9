"""Models of the libraries built on JAX, seen as a tree of parameters and a pure loss function."""

from __future__ import annotations

from typing import Any

from hybridcore_jax.interfaces.base import Parts, PureModel, is_kind

__all__ = ["Parts", "parts_of"]


def parts_of(model: Any) -> Parts:
    """Parts of a model; a library is imported only for a model of its own.

    Args:
        model: A flax nnx or equinox module, a `LinenModel`, or a pytree of parameters.

    Raises:
        ModelError: A model of a library is used in a way that cannot work.
    """
    if isinstance(model, Parts):
        return model
    if is_kind(model, "flax.nnx", "Module"):
        from hybridcore_jax.interfaces.nnx import NnxModel

        return NnxModel(model)
    if is_kind(model, "equinox", "Module"):
        from hybridcore_jax.interfaces.equinox import EquinoxModel

        return EquinoxModel(model)
    if is_kind(model, "flax.linen", "Module"):
        from hybridcore_jax.interfaces.linen import refuse_bare_module

        raise refuse_bare_module(model)
    return PureModel(model)
