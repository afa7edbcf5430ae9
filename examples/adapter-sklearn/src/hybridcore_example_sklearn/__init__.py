"""scikit-learn under hybridcore: ``from hybridcore_example_sklearn import SklearnAdapter``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridcore_example_sklearn.adapter import SklearnAdapter

__all__ = ["SklearnAdapter"]


def __getattr__(name: str) -> Any:
    if name == "SklearnAdapter":  # late, so that listing frameworks imports no scikit-learn
        from hybridcore_example_sklearn.adapter import SklearnAdapter

        return SklearnAdapter
    raise AttributeError(f"module 'hybridcore_example_sklearn' has no attribute {name!r}")
