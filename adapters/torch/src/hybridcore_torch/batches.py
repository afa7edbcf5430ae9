"""Batches as PyTorch programs have them: tensors inside tuples, lists and mappings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from hybridcore.errors import BatchError

__all__ = ["n_examples", "split", "to_device"]


def _leaves(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _leaves(value)


def _map(batch: Any, fn: Any) -> Any:
    if isinstance(batch, (torch.Tensor, np.ndarray)):
        return fn(batch)
    if isinstance(batch, Mapping):
        return {key: _map(value, fn) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_map(value, fn) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_map(value, fn) for value in batch)
    return batch


def n_examples(batch: Any) -> int:
    """Length of the first tensor's first axis; 0 where there is none."""
    first = next(_leaves(batch), None)
    return int(first.shape[0]) if first is not None and first.ndim else 0


def split(batch: Any, parts: int) -> list[tuple[Any, float]]:
    """Cut a batch along axis 0.

    Args:
        batch: Tensors, possibly nested; those of the batch's length are cut, all else is repeated.
        parts: Number of micro-batches wanted; fewer where there are fewer examples.

    Returns:
        Micro-batches, each with its share of the examples.

    Raises:
        BatchError: The batch has no tensor with a first axis.
    """
    total = n_examples(batch)
    if total == 0:
        raise BatchError(
            "a batch cannot be split into micro-batches",
            where="accumulate",
            got=type(batch).__name__,
            expected="tensors with examples along axis 0",
            fix="set accumulate=1 or pass a tensor, tuple, list or dict of tensors",
        )
    parts = min(parts, total)
    edges = [total * i // parts for i in range(parts + 1)]

    def cut(low: int, high: int) -> Any:
        return _map(batch, lambda t: t[low:high] if t.ndim and t.shape[0] == total else t)

    return [(cut(a, b), (b - a) / total) for a, b in pairwise(edges)]


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with NumPy arrays as tensors, on `device`; memory is shared where that is possible."""

    def move(array: Any) -> torch.Tensor:
        if isinstance(array, np.ndarray):
            # A read-only array may not share memory: PyTorch would let it be written.
            array = torch.from_numpy(array if array.flags.writeable else array.copy())
        return array.to(device, non_blocking=True)  # type: ignore[no-any-return]

    return _map(batch, move)
