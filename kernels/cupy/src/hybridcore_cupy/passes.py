"""One kernel over one set of buckets: fills the argument block, launches, gathers sums."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from hybridcore.layout import Buckets
from hybridcore_cupy.arrays import open_arrays
from hybridcore_cupy.device import blocks_for, kernel, launch, new_block
from hybridcore_cupy.structs import ARGS

__all__ = ["Pass", "fits"]


class Pass:
    """Launches of one operation; a context that ends when all of them are queued.

    Args:
        like: Any array that the operation works on; decides framework, device and stream.
        xp: Array namespace.
        sums: Total numbers that reductions of this operation give.
    """

    def __init__(self, like: Any, xp: ModuleType, sums: int = 0) -> None:
        self.arrays = open_arrays(like, xp)
        self.totals = self.arrays.empty(sums, "float64") if sums else None

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
            quantities: Sums per run that the kernel makes; they go to ``totals[first:]``.
            first: Where they go.
            snapshots: K of the sources that want it.
            **fields: Further fields of the argument block; `runs` makes that many rows of blocks.
        """
        arrays = self.arrays
        block = new_block(ARGS)
        for index, array in enumerate(inputs):
            block["inputs"][index] = arrays.pointer(array)
        for index, array in enumerate(outputs):
            block["outputs"][index] = arrays.pointer(array)
        block["count"] = count
        for field, value in fields.items():
            if isinstance(value, list):
                block[field][: len(value)] = value
            else:
                block[field] = value
        rows = max(1, int(fields.get("runs", 1)))
        width = blocks_for(count, arrays.device)
        if quantities:
            partials = arrays.empty(rows * quantities * width, "float64")
            block["sums"] = arrays.pointer(partials)
        launch(kernel(file, name, snapshots), (width, rows), block, arrays.stream, arrays.device)
        if quantities:
            ending = new_block(ARGS)
            ending["sums"], ending["blocks"] = block["sums"], width
            ending["outputs"][0] = arrays.pointer(self.totals) + 8 * first
            function = kernel("stream", "finish")
            launch(function, (rows * quantities,), ending, arrays.stream, arrays.device)

    def numbers(self) -> list[float]:
        """All totals; waits for the device."""
        return self.arrays.numbers(self.totals)


def fits(xp: ModuleType, *sets: Buckets | None) -> bool:
    """Whether all buckets are 1-D float32 arrays of one device and equal sizes, at least one of them."""
    given = [buckets for buckets in sets if buckets is not None]
    if not given or not given[0]:
        return False
    arrays = open_arrays(given[0][0], xp)
    sizes = [int(b.shape[0]) for b in given[0]]
    return all(
        [int(b.shape[0]) for b in buckets] == sizes and all(arrays.serves(b) for b in buckets)
        for buckets in given
    )
