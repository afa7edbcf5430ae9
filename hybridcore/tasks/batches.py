"""Endless shuffled epochs and fixed splits, reproducible from a seed and a position alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridcore.errors import TaskError

__all__ = [
    "Batch",
    "BatchStream",
    "ConvertedBatches",
    "ShuffledBatches",
    "batches_of",
    "skip_batches",
    "split_indices",
]

Batch = tuple[NDArray[Any], ...]
"""Arrays whose first axes run over the same examples."""

Gather = Callable[[NDArray[np.int64]], Batch]
"""Makes the batch of the examples with these indices."""

_ORDER = 1
"""Separates the stream of data order from other uses of a seed."""


class ShuffledBatches:
    """Shuffled epochs without end, cut into batches of one size.

    The permutations of epochs 0, 1, 2, ... are laid end to end and cut every `batch_size` examples: each
    epoch covers every example exactly once, and a batch may hold the end of one epoch and the start of the
    next, so that all batches have the same shape. Calling the object starts a new, independent stream.

    Args:
        gather: Makes a batch from example indices.
        count: Examples per epoch.
        batch_size: Examples per batch; may exceed `count`.
        seed: Seeds the order.

    Example:
        >>> stream = ShuffledBatches(lambda index: (index,), count=3, batch_size=2, seed=0)()
        >>> epoch = [int(i) for _ in range(3) for i in next(stream)[0]]
        >>> sorted(epoch[:3]), sorted(epoch[3:])
        ([0, 1, 2], [0, 1, 2])
    """

    def __init__(self, gather: Gather, count: int, batch_size: int, seed: int) -> None:
        self._gather, self.count, self.batch_size, self.seed = gather, count, batch_size, seed

    def __call__(self, position: int = 0) -> BatchStream:
        """New stream that starts at the batch of index `position`."""
        return BatchStream(self, position)

    def __iter__(self) -> BatchStream:
        return self()

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """Order of the examples in an epoch, shape (count,)."""
        sequence = np.random.SeedSequence((self.seed, _ORDER, epoch))
        return np.random.default_rng(sequence).permutation(self.count)

    def gather(self, index: NDArray[np.int64]) -> Batch:
        """The batch of the examples with these indices."""
        return self._gather(index)


class BatchStream(Iterator[Batch]):
    """One pass through `ShuffledBatches`; `position` is the index of the next batch and may be set.

    Args:
        source: What is shuffled.
        position: Index of the first batch.
    """

    def __init__(self, source: ShuffledBatches, position: int = 0) -> None:
        self._source, self.position = source, position
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def skip(self, count: int) -> None:
        """Pass over the next `count` batches at no cost."""
        self.position += count

    def __next__(self) -> Batch:
        size, count = self._source.batch_size, self._source.count
        start, stop = self.position * size, (self.position + 1) * size
        parts = []
        while start < stop:
            epoch, offset = divmod(start, count)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._source.permutation(epoch)
            parts.append(self._order[offset : offset + stop - start])
            start += parts[-1].size
        self.position += 1
        return self._source.gather(np.concatenate(parts))


class ConvertedBatches(Iterator[Any]):
    """Batches in a framework's own arrays; one that comes again and again is converted once.

    Args:
        batches: NumPy batches.
        convert: Makes the framework's batch of one.

    Example:
        >>> stream = ConvertedBatches(iter([(1,), (2,), (3,)]), list)
        >>> stream.skip(2)
        >>> next(stream)
        [3]
    """

    def __init__(self, batches: Iterable[Any], convert: Callable[[Any], Any]) -> None:
        self._batches, self._convert = iter(batches), convert
        self._last: Any = None
        self._converted: Any = None

    def skip(self, count: int) -> None:
        """Pass over the next `count` batches."""
        skip_batches(self._batches, count)

    def __next__(self) -> Any:
        batch = next(self._batches)
        if batch is not self._last:
            self._last, self._converted = batch, self._convert(batch)
        return self._converted


def skip_batches(batches: Iterator[Any], count: int) -> None:
    """Pass over batches: by the stream's own method `skip`, where it has one, or by reading them.

    Raises:
        TaskError: The stream ends before.

    Example:
        >>> stream = iter("abc")
        >>> skip_batches(stream, 2)
        >>> next(stream)
        'c'
    """
    own = getattr(batches, "skip", None)
    if callable(own):
        own(count)
        return
    read = sum(1 for _ in itertools.islice(batches, count))
    if read < count:
        raise TaskError(
            f"the training batches ended after {read} of the {count} to pass over",
            where="task",
            expected="an endless stream of batches, the same as before where a run goes on",
            fix="let the stream go on; a run goes on with the data it began with, and the arm reshuffled "
            "needs as many batches again and can be left out",
        )


def batches_of(gather: Gather, indices: Sequence[int] | NDArray[np.int64], size: int) -> tuple[Batch, ...]:
    """Fixed batches in the order of `indices`; the last one may be shorter.

    Args:
        gather: Makes a batch from example indices.
        indices: Which examples.
        size: Examples per batch.
    """
    index = np.asarray(indices, np.int64)
    return tuple(gather(index[start : start + size]) for start in range(0, index.size, size))


def split_indices(
    count: int, probes: int, validation: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Disjoint shuffled indices of training, probe and validation examples, always the same.

    Args:
        count: Examples in all.
        probes: Examples for probes.
        validation: Examples for validation.

    Returns:
        ``(training, probes, validation)``; training gets the rest.

    Example:
        >>> [part.size for part in split_indices(10, 2, 3)]
        [5, 2, 3]
    """
    order = np.random.default_rng(0).permutation(count)
    return order[probes + validation :], order[:probes], order[probes : probes + validation]
