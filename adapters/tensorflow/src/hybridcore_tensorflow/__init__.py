"""TensorFlow and Keras adapter of hybridcore: ``from hybridcore_tensorflow import hybridize``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Hybrid": "hybridcore_tensorflow.hybrid",
    "HybridCallback": "hybridcore_tensorflow.callback",
    "TensorFlowAdapter": "hybridcore_tensorflow.adapter",
    "hybridize": "hybridcore_tensorflow.hybrid",
    "load_exported": "hybridcore_tensorflow.checkpoints",
}

if TYPE_CHECKING:
    from hybridcore_tensorflow.adapter import TensorFlowAdapter
    from hybridcore_tensorflow.callback import HybridCallback
    from hybridcore_tensorflow.checkpoints import load_exported
    from hybridcore_tensorflow.hybrid import Hybrid, hybridize

__all__ = ["Hybrid", "HybridCallback", "TensorFlowAdapter", "hybridize", "load_exported"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from hybridcore_tensorflow.installed import require_tensorflow

        require_tensorflow()
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hybridcore_tensorflow' has no attribute {name!r}")
