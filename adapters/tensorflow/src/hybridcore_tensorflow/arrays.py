"""Flat tensors to arrays that the engine computes with, and back: NumPy on the CPU, CuPy on GPUs.

TensorFlow has no Array API namespace. On the CPU the engine computes in NumPy. On a GPU it computes in
CuPy, which shares the tensor's memory through DLPack; without CuPy, in NumPy through the host's memory.

An array handed out is always a copy: a TensorFlow tensor may share its buffer with a variable, and a
write through DLPack would change the model. From NumPy to TensorFlow the way is `tf.convert_to_tensor`,
which copies; `tf.experimental.dlpack` aborts the process on memory that is not 64-byte aligned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from hybridcore.errors import DeltaError

__all__ = ["ArrayBridge", "CupyBridge", "NumpyBridge", "bridge_for"]

logger = logging.getLogger("hybridcore")


class ArrayBridge(Protocol):
    """Moves flat vectors between TensorFlow and an array namespace."""

    xp: ModuleType

    def view(self, tensor: Any) -> Any:
        """Array over the tensor's memory; to be read at once and never written."""
        ...

    def copy(self, tensor: Any) -> Any:
        """Array of its own."""
        ...

    def copy_into(self, target: Any, tensor: Any) -> None:
        """Overwrite an array with the tensor's values."""
        ...

    def fits(self, array: Any, size: int, dtype: str = "float32") -> bool:
        """Whether an array is a writable vector of this size and dtype in the right memory."""
        ...

    def tensor(self, array: Any, dtype: str = "float32") -> Any:
        """Tensor of this dtype with an array's values; never written through."""
        ...


class NumpyBridge:
    """NumPy in the host's memory."""

    def __init__(self) -> None:
        self.xp: ModuleType = import_module("array_api_compat.numpy")

    def view(self, tensor: Any) -> Any:
        """Read-only array; shares memory where the tensor lies on the CPU."""
        return np.asarray(memoryview(tensor) if "CPU" in tensor.device else tensor.numpy())

    def copy(self, tensor: Any) -> Any:
        """Array of its own."""
        return np.array(self.view(tensor))

    def copy_into(self, target: Any, tensor: Any) -> None:
        """Overwrite an array with the tensor's values."""
        np.copyto(target, self.view(tensor))

    def fits(self, array: Any, size: int, dtype: str = "float32") -> bool:
        """Whether it is a writable vector of this size and dtype."""
        return (
            isinstance(array, np.ndarray)
            and array.shape == (size,)
            and array.dtype == np.dtype(dtype)
            and array.flags.writeable
        )

    def tensor(self, array: Any, dtype: str = "float32") -> Any:
        """Copy of the array as a tensor.

        Raises:
            DeltaError: It is no array that NumPy can take.
        """
        try:
            host = array.get() if hasattr(array, "get") else array
            return tf.convert_to_tensor(np.asarray(host, dtype=dtype))
        except (TypeError, ValueError, RuntimeError) as error:
            raise _no_array(array) from error


class CupyBridge:
    """CuPy on the GPU that holds the model; memory is shared through DLPack for reading only."""

    def __init__(self) -> None:
        self._cupy = import_module("cupy")
        self.xp: ModuleType = import_module("array_api_compat.cupy")

    def view(self, tensor: Any) -> Any:
        """Array over the tensor's memory."""
        return self._cupy.from_dlpack(tf.experimental.dlpack.to_dlpack(tensor))

    def copy(self, tensor: Any) -> Any:
        """Array of its own."""
        return self.view(tensor).copy()

    def copy_into(self, target: Any, tensor: Any) -> None:
        """Overwrite an array with the tensor's values."""
        target[...] = self.view(tensor)

    def fits(self, array: Any, size: int, dtype: str = "float32") -> bool:
        """Whether it is a vector of this size and dtype on a GPU."""
        return isinstance(array, self._cupy.ndarray) and array.shape == (size,) and array.dtype == dtype

    def tensor(self, array: Any, dtype: str = "float32") -> Any:
        """Tensor with a copy of the array's values.

        Raises:
            DeltaError: It is no array that CuPy can take.
        """
        try:
            copied = self._cupy.array(array, dtype=dtype, copy=True)
            self._cupy.cuda.get_current_stream().synchronize()
            return tf.experimental.dlpack.from_dlpack(copied.toDlpack())
        except (TypeError, ValueError, RuntimeError) as error:
            raise _no_array(array) from error


def bridge_for(device: str) -> ArrayBridge:
    """The bridge for a device of a layout, such as ``"cpu"`` or ``"gpu:0"``."""
    if not device.startswith("gpu"):
        return NumpyBridge()
    try:
        return CupyBridge()
    except ImportError:
        logger.warning(
            "CuPy is not installed: weights of a GPU model pass through the host's memory at every look; "
            "pip install cupy-cuda12x"
        )
        return NumpyBridge()


def accept(bridge: ArrayBridge, arrays: Sequence[Any]) -> list[Any]:
    """Tensors of arrays."""
    return [bridge.tensor(array) for array in arrays]


def _no_array(array: Any) -> DeltaError:
    return DeltaError(
        "a bucket is no array that the adapter can take",
        where="buckets",
        got=type(array).__name__,
        expected="1-D arrays of the adapter's `xp`",
        fix="compute with the adapter's `xp`",
    )
