"""Batches as JAX programs have them: arrays inside tuples, lists, mappings and other pytrees."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from hybridcore.errors import BatchError

__all__ = ["micro_batches", "n_examples", "to_device"]


def n_examples(batch: Any) -> int:
    """Length of the first array's first axis; 0 where there is none."""
    shapes = [np.shape(x) for x in jax.tree.leaves(batch)]
    return int(shapes[0][0]) if shapes and shapes[0] else 0


def micro_batches(batch: Any, parts: int) -> tuple[Any, Any, float]:
    """Cut a batch along axis 0 into equal micro-batches and a shorter rest.

    Args:
        batch: Arrays; those of the batch's length are cut, all else is repeated.
        parts: Number of micro-batches wanted; fewer where there are fewer examples.

    Returns:
        The equal ones stacked along a new first axis; the rest, or None; the share of the examples that one
        of the equal ones holds.

    Raises:
        BatchError: The batch has no array with a first axis.

    Example:
        >>> equal, rest, share = micro_batches((np.arange(10),), 3)
        >>> equal[0].shape, rest[0].shape, share
        ((2, 4), (2,), 0.4)
    """
    total = n_examples(batch)
    if total == 0:
        raise BatchError(
            "a batch cannot be split into micro-batches",
            where="accumulate",
            got=type(batch).__name__,
            expected="arrays with examples along axis 0",
            fix="set accumulate=1 or pass a pytree of arrays",
        )
    size = -(-total // min(parts, total))
    whole = total // size

    def of_length(x: Any) -> bool:
        return bool(np.ndim(x)) and np.shape(x)[0] == total

    def stack(x: Any) -> Any:
        if of_length(x):
            return x[: whole * size].reshape(whole, size, *x.shape[1:])
        return jax.numpy.broadcast_to(x, (whole, *np.shape(x)))

    equal = jax.tree.map(stack, batch)
    rest = jax.tree.map(lambda x: x[whole * size :] if of_length(x) else x, batch)
    return equal, rest if total > whole * size else None, size / total


def to_device(batch: Any, device: jax.Device) -> Any:
    """The batch with NumPy arrays as JAX arrays on `device`; 64-bit ones become 32-bit unless x64 is on."""
    return jax.device_put(batch, device)
