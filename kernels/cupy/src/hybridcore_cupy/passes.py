"""One kernel over one set of buckets: fills the argument block, launches, gathers sums."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from hybridcore.layout import Buckets
from hybridcore_cupy.arrays import Arrays, open_arrays
from hybridcore_cupy.device import blocks_for, kernel, launch
from hybridcore_cupy.scratch import Scratch, scratch
from hybridcore_cupy.structs import Args

__all__ = ["Pass", "fitting"]


class Pass:
    """Launches of one operation; a context that ends when all of them are queued.

    Args:
        arrays: Access to the arrays that the operation works on.
        sums: Total numbers that reductions of this operation give.
    """

    def __init__(self, arrays: Arrays, sums: int = 0) -> None:
        self.arrays, self.sums = arrays, sums
        self._scratch: Scratch | None = scratch(arrays) if sums else None
        self.totals = self._scratch.totals(arrays, sums) if self._scratch is not None else 0

    def __enter__(self) -> Pass:
        return self

    def __exit__(self, *_: object) -> None:
        self.arrays.close()

    def run(
        self,
        file: str,
        name: str,
        inputs: Sequence[Any],
        outputs: Sequence[Any] = (),
        *,
        count: int,
        quantities: int = 0,
        first: int = 0,
        snapshots: int = 0,
        **fields: Any,
    ) -> None:
        """Queue a kernel over arrays of `count` numbers.

        Args:
            file: Source file.
            name: Kernel.
            inputs: Arrays to read.
            outputs: Arrays to write, from ``arrays.empty``.
            count: Numbers per array.
            quantities: Sums per run that the kernel makes; they go to the totals from `first` on.
            first: Where they go.
            snapshots: K of the sources that want it.
            **fields: Further fields of the argument block; `runs` makes that many rows of blocks.
        """
        arrays, block = self.arrays, Args()
        for index, array in enumerate(inputs):
            block.inputs[index] = arrays.pointer(array)
        for index, array in enumerate(outputs):
            block.outputs[index] = arrays.pointer(array)
        block.count = count
        for field, value in fields.items():
            if isinstance(value, list):
                getattr(block, field)[: len(value)] = value
            else:
                setattr(block, field, value)
        rows = max(1, int(fields.get("runs", 1)))
        width = blocks_for(count, arrays.device)
        if quantities and self._scratch is not None:
            block.partials = self._scratch.partials(arrays, rows * quantities * width)
            block.counters = self._scratch.counters
            block.totals = self.totals + 8 * first
        launch(kernel(file, name, snapshots), (width, rows), block, arrays.stream, arrays.device)

    def numbers(self) -> list[float]:
        """All totals; waits for the device."""
        assert self._scratch is not None
        return self._scratch.numbers(self.arrays, self.sums)


def fitting(xp: ModuleType, *sets: Buckets | None) -> Arrays | None:
    """Access to 1-D float32 buckets of one device and equal sizes, at least one; None where they differ."""
    first = next((buckets for buckets in sets if buckets is not None), ())
    if not first:
        return None
    arrays = open_arrays(first[0], xp)
    sizes = [b.shape for b in first]
    for buckets in sets:
        if buckets is None:
            continue
        if [b.shape for b in buckets] != sizes or not all(map(arrays.serves, buckets)):
            return None
    return arrays
