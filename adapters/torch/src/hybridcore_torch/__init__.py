"""PyTorch adapter of hybridcore: ``from hybridcore_torch import hybridize``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Hybrid": "hybridcore_torch.hybrid",
    "TorchAdapter": "hybridcore_torch.adapter",
    "hybridize": "hybridcore_torch.hybrid",
}

if TYPE_CHECKING:
    from hybridcore_torch.adapter import TorchAdapter
    from hybridcore_torch.hybrid import Hybrid, hybridize

__all__ = ["Hybrid", "TorchAdapter", "hybridize"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hybridcore_torch' has no attribute {name!r}")
