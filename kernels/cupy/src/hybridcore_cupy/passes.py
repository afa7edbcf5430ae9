"""The kernels of one operation: argument blocks, launches, sums of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import ModuleType
from typing import Any

import numpy as np

from hybridcore.layout import Buckets
from hybridcore_cupy.arrays import Arrays, open_arrays
from hybridcore_cupy.device import blocks_for, kernel, launch
from hybridcore_cupy.scratch import scratch
from hybridcore_cupy.structs import Args

__all__ = ["Pass", "fitting"]


class Pass:
    """Launches of one operation; a context that ends when all of them are queued.

    Args:
        arrays: Access to the arrays that the operation works on.
    """

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self._device = arrays.device
        self._reductions: list[tuple[Any, tuple[int, int], Args, list[int], int]] = []

    def __enter__(self) -> Pass:
        return self

    def __exit__(self, *_: object) -> None:
        self.arrays.close()

    def write(
        self,
        file: str,
        name: str,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        *,
        count: int,
        items: int = 4,
        snapshots: int = 0,
        **fields: Any,
    ) -> None:
        """Queue a kernel that makes arrays of `count` numbers.

        Args:
            file: Source file.
            name: Kernel.
            inputs: Arrays to read.
            outputs: Arrays to write, from ``arrays.empty``.
            count: Numbers per array.
            items: Numbers that a thread takes at once.
            snapshots: K of the sources that want it.
            **fields: Further fields of the argument block.
        """
        if count:
            block = self._block(inputs, outputs, count, fields)
            grid = (blocks_for(count, items, self._device), 1)
            launch(kernel(file, name, snapshots), grid, block, self.arrays.stream, self._device)

    def add_up(
        self,
        file: str,
        name: str,
        inputs: Sequence[Any],
        *,
        count: int,
        quantities: int,
        outputs: Sequence[Any] = (),
        items: int = 4,
        snapshots: int = 0,
    ) -> None:
        """Note a kernel that sums over arrays, see `write`; `sums` queues it."""
        blocks = blocks_for(count, items, self._device, quantities) if count else 0
        block = self._block(inputs, outputs, count, {})
        self._reductions.append((kernel(file, name, snapshots), (blocks, 1), block, [blocks], quantities))

    def square_runs(self, inputs: Sequence[Any], parts: Sequence[tuple[int, slice]]) -> None:
        """Note the sums of squares of stretches of arrays, at most as many as an argument block holds.

        Args:
            inputs: Arrays.
            parts: Index of an array, and a stretch of it.
        """
        sizes = [part.stop - part.start for _, part in parts]
        # No more blocks in all than one array would have: a single one too many runs alone at the end.
        most = blocks_for(sum(sizes), 8, self._device, 1)
        each = -(-sum(sizes) // max(1, most - len(sizes) + 1)) or 1
        blocks = [-(-size // each) for size in sizes]
        fields = {
            "source": [source for source, _ in parts],
            "start": [part.start for _, part in parts],
            "stop": [part.stop for _, part in parts],
            "first": [0, *accumulate(blocks)],
            "runs": len(parts),
        }
        block = self._block(inputs, (), max(sizes), fields)
        self._reductions.append((kernel("stream", "run_squares"), (sum(blocks), 1), block, blocks, 1))

    def _block(
        self, inputs: Sequence[Any], outputs: Sequence[Any], count: int, fields: Mapping[str, Any]
    ) -> Args:
        block = Args()
        for index, array in enumerate(inputs):
            block.inputs[index] = self.arrays.pointer(array)
        for index, array in enumerate(outputs):
            block.outputs[index] = self.arrays.pointer(array)
        block.count = count
        for field, value in fields.items():
            if isinstance(value, list):
                getattr(block, field)[: len(value)] = value
            else:
                setattr(block, field, value)
        return block

    def sums(self) -> list[list[float]]:
        """Queue what was noted and wait for it.

        Blocks are added up here, in their order, so that the same sizes and numbers give the same bits.

        Returns:
            The quantities of each kernel noted; of `square_runs`, one list per stretch.
        """
        room, work = sum(grid[0] * q for _, grid, _, _, q in self._reductions), scratch(self.arrays)
        address = work.room(self.arrays, room)
        for function, grid, block, _, quantities in self._reductions:
            if grid[0]:
                block.partials = address
                launch(function, grid, block, self.arrays.stream, self._device)
                address += 8 * grid[0] * quantities
        left = work.numbers(self.arrays, room) if room else np.zeros(0)
        found, begin = [], 0
        for _, _, _, blocks, quantities in self._reductions:
            for count in blocks:
                end = begin + count * quantities
                found.append([float(x) for x in left[begin:end].reshape(count, quantities).sum(axis=0)])
                begin = end
        return found


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
