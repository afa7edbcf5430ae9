"""Contracts and fixtures that third parties can run against their own plugins."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "AdapterContract": "hybridcore.testing.adapter_contract",
    "AdapterFixture": "hybridcore.testing.adapter_contract",
}

if TYPE_CHECKING:
    from hybridcore.testing.adapter_contract import AdapterContract, AdapterFixture

__all__ = ["AdapterContract", "AdapterFixture"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hybridcore.testing' has no attribute {name!r}")
