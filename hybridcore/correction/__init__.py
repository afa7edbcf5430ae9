"""Residuals of predictions, their store, and the correctors that learn from them, one per file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "CompressedBuckets": "hybridcore.correction.compression",
    "LowRank": "hybridcore.correction.compression",
    "ResidualStore": "hybridcore.correction.store",
    "compress_buckets": "hybridcore.correction.compression",
    "low_rank": "hybridcore.correction.compression",
}

if TYPE_CHECKING:
    from hybridcore.correction.compression import CompressedBuckets, LowRank, compress_buckets, low_rank
    from hybridcore.correction.store import ResidualStore

__all__ = ["CompressedBuckets", "LowRank", "ResidualStore", "compress_buckets", "low_rank"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hybridcore.correction' has no attribute {name!r}")
