"""Arrays that wait in host memory, for every adapter that has no faster way (F63)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Buckets

__all__ = ["PlainHostCopy"]


class PlainHostCopy:
    """Copies in NumPy's memory of the arrays of any namespace that NumPy can read; made and undone at once.

    NumPy's own arrays are copied too, so that a write into the one never shows in the other.

    Args:
        arrays: 1-D arrays.
        xp: Their namespace.

    Attributes:
        dtypes: Name of each array's dtype.
        homes: Name of each array's device.

    Example:
        >>> import array_api_compat.numpy as xp
        >>> kept = PlainHostCopy((xp.asarray([1.0, 2.0]),), xp)
        >>> kept.back()[0].tolist()
        [1.0, 2.0]
    """

    def __init__(self, arrays: Buckets, xp: ModuleType) -> None:
        self._xp = xp
        self._devices = [array_api_compat.device(a) for a in arrays]
        self.dtypes = tuple(str(a.dtype).rpartition(".")[2] for a in arrays)
        self.homes = tuple(str(getattr(a, "device", "")) for a in arrays)
        self._kept = [np.array(a.get() if hasattr(a, "get") else a) for a in arrays]

    @property
    def nbytes(self) -> int:
        """Bytes of host memory."""
        return sum(a.nbytes for a in self._kept)

    def back(self) -> Buckets:
        """Fresh arrays on the devices that they came from."""
        pairs: Any = zip(self._kept, self._devices, strict=True)
        return tuple(self._xp.asarray(a, device=device, copy=True) for a, device in pairs)

    def numpy(self) -> list[NDArray[Any]]:
        """What is kept, as NumPy arrays; not to be written."""
        return list(self._kept)
