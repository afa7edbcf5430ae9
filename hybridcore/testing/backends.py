"""Array namespaces that core code must work on."""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Backend"]


class Backend(StrEnum):
    """An array namespace, and whether its arrays may be written to.

    Example:
        >>> Backend.NUMPY.namespace().__name__
        'array_api_compat.numpy'
    """

    NUMPY = "numpy"
    NUMPY_READ_ONLY = "numpy-read-only"
    STRICT = "array-api-strict"
    TORCH = "torch"
    JAX = "jax"

    @property
    def package(self) -> str:
        """Package that must be installed."""
        return {
            Backend.NUMPY: "numpy",
            Backend.NUMPY_READ_ONLY: "numpy",
            Backend.STRICT: "array_api_strict",
            Backend.TORCH: "torch",
            Backend.JAX: "jax",
        }[self]

    def namespace(self) -> ModuleType:
        """The array namespace, imported now.

        Raises:
            ImportError: Its package is not installed.
        """
        return import_module(
            {
                Backend.STRICT: "array_api_strict",
                Backend.TORCH: "array_api_compat.torch",
                Backend.JAX: "jax.numpy",
            }.get(self, "array_api_compat.numpy")
        )

    def protect(self, array: Any) -> Any:
        """The array, made read-only where this backend says so."""
        if self is Backend.NUMPY_READ_ONLY:
            array.setflags(write=False)
        return array

    def to_numpy(self, array: Any) -> NDArray[np.float64]:
        """An independent float64 copy."""
        return np.array(array if isinstance(array, np.ndarray) else np.from_dlpack(array), dtype=np.float64)
