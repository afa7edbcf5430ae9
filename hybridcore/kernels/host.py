"""Numbers from a device to the host, all in one transfer."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Array

__all__ = ["to_host", "to_numbers"]


def to_host(array: Array, xp: ModuleType) -> NDArray[np.float64]:
    """An array of any device as NumPy's, in float64."""
    if not isinstance(array, np.ndarray) and not array_api_compat.is_jax_namespace(xp):
        array = array_api_compat.to_device(array, "cpu")
    return np.asarray(array).astype(np.float64)


def to_numbers(scalars: Sequence[Array], xp: ModuleType) -> list[float]:
    """Arrays of shape () as Python floats.

    A device is waited for once and not once per number; in the processor's own memory there is nothing to
    wait for, and the detour over one array would only cost.
    """
    if len(scalars) < 2 or "cpu" in str(array_api_compat.device(scalars[0])).lower():
        return [float(x) for x in scalars]
    if len({str(array_api_compat.device(x)) for x in scalars}) > 1:
        return [float(x) for x in scalars]
    numbers: list[float] = to_host(xp.stack(list(scalars)), xp).tolist()
    return numbers
