"""Small pieces of array arithmetic that are the same in every namespace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from array_api_compat import device
from numpy.typing import NDArray

from hybridcore.layout import Array

__all__ = ["Constants", "chunks", "silu", "stack"]


class Constants:
    """A network's weights, in each namespace and on each device that asks for them.

    Example:
        >>> import array_api_compat.numpy as xp
        >>> import numpy as np
        >>> made = Constants({"w": np.eye(2)}).beside(xp.zeros(3, dtype=xp.float32), xp)
        >>> made["w"].dtype
        dtype('float32')
    """

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._arrays = arrays
        self._made: dict[tuple[str, str, str], dict[str, Array]] = {}

    def beside(self, array: Array, xp: ModuleType) -> dict[str, Array]:
        """All of them as arrays of `xp` on the device of `array` and of its dtype; made once."""
        where = device(array)
        key = (xp.__name__, str(where), str(array.dtype))
        if key not in self._made:
            # Lists are the one form that every namespace takes.
            self._made[key] = {
                name: xp.asarray(value.tolist(), dtype=array.dtype, device=where)
                for name, value in self._arrays.items()
            }
        return self._made[key]


def chunks(size: int, chunk: int) -> Iterator[slice]:
    """Slices of at most `chunk` that cover ``range(size)``.

    Example:
        >>> list(chunks(5, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    for start in range(0, size, chunk):
        yield slice(start, min(start + chunk, size))


def stack(snapshots: Sequence[Array], part: slice, xp: ModuleType, count: int = 0) -> Array:
    """The same part of several 1-D arrays as rows, oldest first.

    Args:
        snapshots: The arrays; two at least where rows are missing.
        part: What to take of each.
        xp: Their array namespace.
        count: Rows wanted. Missing ones are put before the others, as if the first displacement had always
            been the same.

    Returns:
        Shape (max(count, len(snapshots)), n).

    Example:
        >>> import array_api_compat.numpy as xp
        >>> stack([xp.asarray([4.0, 1.0]), xp.asarray([6.0, 1.5])], slice(0, 1), xp, 4).tolist()
        [[0.0], [2.0], [4.0], [6.0]]
    """
    rows = [s[part] for s in snapshots]
    for _ in range(count - len(rows)):
        rows.insert(0, rows[0] - (rows[1] - rows[0]))
    return xp.stack(rows)


def silu(x: Array, xp: ModuleType) -> Array:
    """``x * sigmoid(x)``, in a form that cannot overflow."""
    return 0.5 * x * (1.0 + xp.tanh(0.5 * x))
