"""JAX adapter of hybridcore: ``from hybridcore_jax import hybridize``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Hybrid": "hybridcore_jax.hybrid",
    "JaxAdapter": "hybridcore_jax.adapter",
    "LinenModel": "hybridcore_jax.interfaces.linen",
    "hybridize": "hybridcore_jax.hybrid",
    "rescale_velocity": "hybridcore_jax.jump_rules",
    "scale_rate": "hybridcore_jax.jump_rules",
}

if TYPE_CHECKING:
    from hybridcore_jax.adapter import JaxAdapter
    from hybridcore_jax.hybrid import Hybrid, hybridize
    from hybridcore_jax.interfaces.linen import LinenModel
    from hybridcore_jax.jump_rules import rescale_velocity, scale_rate

__all__ = ["Hybrid", "JaxAdapter", "LinenModel", "hybridize", "rescale_velocity", "scale_rate"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hybridcore_jax' has no attribute {name!r}")
