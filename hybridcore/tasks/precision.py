"""Problems in another precision than the float32 in which tasks write them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.protocols import Problem
from hybridcore.tasks.batches import Batch, skip_batches

__all__ = ["WideBatches", "in_float64"]


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


class WideBatches(Iterator[Batch]):
    """Batches whose floating-point arrays are float64; one that comes again and again is converted once.

    Args:
        batches: The stream.

    Example:
        >>> next(WideBatches(iter([(np.ones(2, np.float32), np.arange(2))])))[0].dtype
        dtype('float64')
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._last: Batch | None = None
        self._made: Batch = ()

    def skip(self, count: int) -> None:
        """Pass over the next `count` batches."""
        skip_batches(self._batches, count)

    def __next__(self) -> Batch:
        batch = next(self._batches)
        if batch is not self._last:
            self._last, self._made = batch, tuple(map(_wide, batch))
        return self._made


def in_float64(problem: Problem) -> Problem:
    """The problem with weights and data in float64, from which frameworks build float64 models.

    The numbers are those of float32: runs in both precisions start at the same weights, see the same
    examples, and differ by rounding alone.

    Example:
        >>> from hybridcore.tasks.quadratic import QuadraticTask
        >>> in_float64(QuadraticTask().problem(0)).weights["w"].dtype
        dtype('float64')
    """
    return attrs.evolve(
        problem,
        weights={name: _wide(array) for name, array in problem.weights.items()},
        batches=lambda *position: WideBatches(iter(problem.batches(*position))),
        probes=tuple(tuple(map(_wide, batch)) for batch in problem.probes),
        validation=tuple(tuple(map(_wide, batch)) for batch in problem.validation),
    )
