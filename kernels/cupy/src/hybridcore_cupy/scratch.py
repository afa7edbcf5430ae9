"""Memory for reductions, made once per thread and stream: sums per block, totals, counters."""

from __future__ import annotations

import threading
from typing import Any

from hybridcore_cupy.arrays import Arrays
from hybridcore_cupy.structs import MOST_RUNS

__all__ = ["Scratch", "scratch"]


class Scratch:
    """Work space of all reductions that one thread queues on one stream.

    Launches on a stream run one after the other, so that the next one may have what the last one used; the
    totals are read before the next operation begins. Counters are zero between launches: the kernel that
    counts up to a row's blocks ends at zero again.

    Args:
        arrays: Access to arrays of that stream.

    Attributes:
        counters: Address of one counter per run.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._counters = arrays.zeros(MOST_RUNS, "int32")
        self.counters = arrays.pointer(self._counters)
        self._partials: tuple[Any, int, int] = (None, 0, 0)
        self._totals: tuple[Any, int, int] = (None, 0, 0)

    def partials(self, arrays: Arrays, count: int) -> int:
        """Address of room for `count` sums of blocks."""
        if self._partials[2] < count:
            made = arrays.empty(max(count, 1 << 14), "float64")
            self._partials = (made, arrays.pointer(made), max(count, 1 << 14))
        return self._partials[1]

    def totals(self, arrays: Arrays, count: int) -> int:
        """Address of room for `count` totals."""
        if self._totals[2] < count:
            made = arrays.empty(max(count, 64), "float64")
            self._totals = (made, arrays.pointer(made), max(count, 64))
        return self._totals[1]

    def numbers(self, arrays: Arrays, count: int) -> list[float]:
        """The first `count` totals; waits for the device."""
        return arrays.numbers(self._totals[0][:count])


class _Kept(threading.local):
    def __init__(self) -> None:
        self.found: dict[tuple[str, int, int], Scratch] = {}


_kept = _Kept()


def scratch(arrays: Arrays) -> Scratch:
    """Work space of this thread for the device and stream of `arrays`."""
    key = (type(arrays).__name__, arrays.device, arrays.stream)
    found = _kept.found.get(key)
    if found is None:
        found = _kept.found[key] = Scratch(arrays)
    return found
