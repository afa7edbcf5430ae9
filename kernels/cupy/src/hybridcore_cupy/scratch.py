"""Memory for the sums that the blocks of a reduction leave, kept per thread and stream."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridcore_cupy.arrays import Arrays

__all__ = ["Scratch", "scratch"]

LEAST = 1 << 13
"""Sums that there is room for at first."""


class Scratch:
    """Work space of all reductions that one thread queues on one stream.

    Launches on a stream run one after the other, and the sums are read before the next operation begins, so
    that the next one may have what the last one used.
    """

    def __init__(self) -> None:
        self._sums: tuple[Any, int, int] = (None, 0, 0)

    def room(self, arrays: Arrays, count: int) -> int:
        """Address of room for `count` sums."""
        if self._sums[2] < count:
            made = arrays.empty(max(count, LEAST), "float64")
            self._sums = (made, arrays.pointer(made), max(count, LEAST))
        return self._sums[1]

    def numbers(self, arrays: Arrays, count: int) -> NDArray[np.float64]:
        """The first `count` sums; waits for the device."""
        return arrays.numbers(self._sums[0][:count])


class _Kept(threading.local):
    def __init__(self) -> None:
        self.found: dict[tuple[str, int, int], Scratch] = {}


_kept = _Kept()


def scratch(arrays: Arrays) -> Scratch:
    """Work space of this thread for the device and stream of `arrays`."""
    key = (type(arrays).__name__, arrays.device, arrays.stream)
    found = _kept.found.get(key)
    if found is None:
        found = _kept.found[key] = Scratch()
    return found
