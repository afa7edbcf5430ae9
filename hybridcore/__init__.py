"""hybridcore: training engine for hybrid predictive training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Engine": "hybridcore.engine",
    "Event": "hybridcore.events",
    "HybridConfig": "hybridcore.config",
    "HybridCoreError": "hybridcore.errors",
    "ParamLayout": "hybridcore.layout",
    "Phase": "hybridcore.protocols",
    "Prediction": "hybridcore.protocols",
    "hookimpl": "hybridcore.hookspecs",
}

if TYPE_CHECKING:
    from hybridcore.config import HybridConfig
    from hybridcore.engine import Engine
    from hybridcore.errors import HybridCoreError
    from hybridcore.events import Event
    from hybridcore.hookspecs import hookimpl
    from hybridcore.layout import ParamLayout
    from hybridcore.protocols import Phase, Prediction

__all__ = [
    "Engine",
    "Event",
    "HybridConfig",
    "HybridCoreError",
    "ParamLayout",
    "Phase",
    "Prediction",
    "__version__",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hybridcore' has no attribute {name!r}")
