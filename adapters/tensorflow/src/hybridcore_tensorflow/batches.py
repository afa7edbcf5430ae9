"""Batches as TensorFlow programs have them: arrays and tensors inside tuples, lists and mappings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from hybridcore.errors import BatchError

__all__ = ["as_tensors", "describe", "n_examples", "split"]

_ARRAYS = (tf.Tensor, np.ndarray)


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, (*_ARRAYS, tf.distribute.DistributedValues)):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _leaves(value)


def _map(batch: Any, fn: Callable[[Any], Any]) -> Any:
    if isinstance(batch, Mapping):
        return {key: _map(value, fn) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_map(value, fn) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_map(value, fn) for value in batch)
    return fn(batch)


def as_tensors(batch: Any) -> Any:
    """The batch with arrays and plain numbers as tensors, so that no new value makes a new graph."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, (np.ndarray, np.generic, int, float)):
            return tf.convert_to_tensor(leaf)
        return leaf

    return _map(batch, convert)


def n_examples(batch: Any) -> int:
    """Length of the first array's first axis; 0 where there is none."""
    for leaf in _leaves(batch):
        if isinstance(leaf, tf.distribute.DistributedValues):
            return sum(int(part.shape[0]) for part in leaf.values)
        return int(leaf.shape[0] or 0) if len(leaf.shape) else 0
    return 0


def split(batch: Any, parts: int, where: str) -> list[tuple[Any, float]]:
    """Cut a batch along axis 0.

    Args:
        batch: Arrays, possibly nested; those of the batch's length are cut, all else is repeated.
        parts: Number of parts wanted; fewer where there are fewer examples.
        where: What asks for it.

    Returns:
        The parts, each with its share of the examples.

    Raises:
        BatchError: The batch has no array with a first axis.
    """
    total = n_examples(batch)
    if total == 0:
        raise BatchError(
            "a batch cannot be split",
            where=where,
            got=describe(batch),
            expected="arrays with examples along axis 0",
            fix="pass an array, tuple, list or dict of arrays",
        )
    parts = min(parts, total)
    edges = [total * i // parts for i in range(parts + 1)]

    def cut(low: int, high: int) -> Any:
        def one(leaf: Any) -> Any:
            whole = isinstance(leaf, _ARRAYS) and len(leaf.shape) > 0 and leaf.shape[0] == total
            return leaf[low:high] if whole else leaf

        return _map(batch, one)

    return [(cut(a, b), (b - a) / total) for a, b in pairwise(edges)]


def describe(value: Any) -> str:
    """Dtypes and shapes of a batch, in one line."""
    if isinstance(value, _ARRAYS):
        name = value.dtype.name
        return f"{name} {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(describe(v) for v in value[:4])})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in list(value.items())[:4]) + "}"
    return type(value).__name__
