"""Arrays of the frameworks as addresses on a device: no copies, the framework's own stream and memory."""

from __future__ import annotations

import functools
import sys
from collections import deque
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from hybridcore_cupy.device import load_cupy

__all__ = ["Arrays", "DlpackArrays", "TorchArrays", "open_arrays"]


class TorchArrays:
    """Tensors of PyTorch by their addresses, which costs less than a DLPack capsule each.

    PyTorch's allocator reuses memory in the order of its stream, so that nothing has to be kept alive.
    """

    def __init__(self, like: Any) -> None:
        self._torch = torch = sys.modules["torch"]
        self._place, self._float32 = like.device, torch.float32
        self.device: int = self._place.index or 0
        self.stream: int = _torch_stream(torch, self.device) if like.is_cuda else 0
        self._held: list[Any] = []

    def pointer(self, array: Any) -> int:
        """Address of the first number; a tensor with gaps is copied first."""
        if not array.is_contiguous():
            array = array.contiguous()
            self._held.append(array)
        address: int = array.data_ptr()
        return address

    def serves(self, array: Any) -> bool:
        """Whether an array is a float32 tensor on this device."""
        return array.dtype is self._float32 and bool(array.device == self._place)

    def empty(self, shape: int | tuple[int, ...], dtype: str = "float32") -> Any:
        """New memory of PyTorch's own allocator."""
        kind = self._float32 if dtype == "float32" else getattr(self._torch, dtype)
        return self._torch.empty(shape, dtype=kind, device=self._place)

    def give(self, array: Any) -> Any:
        """An array from `empty` as the framework's own."""
        return array

    def numbers(self, array: Any) -> NDArray[np.float64]:
        """A float64 array from `empty` on the host; waits for the device."""
        found: NDArray[np.float64] = array.cpu().numpy()
        return found

    def close(self) -> None:
        """Nothing is kept."""


class DlpackArrays:
    """Arrays of JAX and CuPy through DLPack, on CuPy's current stream.

    The exchange makes each side's stream wait for the other's. What a kernel reads is kept until the kernel
    has run. Of JAX's arrays that means to wait for it: as long as somebody outside JAX holds one, a step that
    would take over its memory has to take new memory instead, and XLA logs an error.
    """

    _pending: deque[tuple[Any, list[Any]]] = deque()

    def __init__(self, like: Any, xp: ModuleType) -> None:
        self._cupy, self._xp = load_cupy(), xp
        self._held: list[Any] = []
        first = self._take(like)
        self.device = int(first.device.id)
        self.stream = int(self._cupy.cuda.get_current_stream().ptr)

    def _take(self, array: Any) -> Any:
        taken = array if isinstance(array, self._cupy.ndarray) else self._cupy.from_dlpack(array)
        self._held.append(taken)
        return taken

    def pointer(self, array: Any) -> int:
        """Address of the first number; an array with gaps is copied first."""
        taken = self._cupy.ascontiguousarray(self._take(array))
        self._held.append(taken)
        return int(taken.data.ptr)

    def serves(self, array: Any) -> bool:
        """Whether an array holds float32 numbers."""
        return str(array.dtype) == "float32"

    def empty(self, shape: int | tuple[int, ...], dtype: str = "float32") -> Any:
        """New memory of CuPy's pool."""
        made = self._cupy.empty(shape, dtype=dtype)
        self._held.append(made)
        return made

    def give(self, array: Any) -> Any:
        """An array from `empty` as the framework's own."""
        if array_api_compat.is_jax_namespace(self._xp):
            return sys.modules["jax"].dlpack.from_dlpack(array)
        return array

    def numbers(self, array: Any) -> NDArray[np.float64]:
        """A float64 array from `empty` on the host; waits for the device."""
        found: NDArray[np.float64] = array.get()
        return found

    def close(self) -> None:
        """Keep what was read until the stream has come this far; let go of what is done."""
        if array_api_compat.is_jax_namespace(self._xp):
            self._cupy.cuda.get_current_stream().synchronize()
            self._held = []
            return
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(self._cupy.cuda.get_current_stream())
        self._pending.append((event, self._held))
        while self._pending and self._pending[0][0].done:
            self._pending.popleft()


Arrays = TorchArrays | DlpackArrays
"""Access to arrays of one framework."""


def open_arrays(like: Any, xp: ModuleType) -> Arrays:
    """Access to arrays of the kind of `like`."""
    if _is_torch(xp):
        return TorchArrays(like)
    return DlpackArrays(like, xp)


@functools.cache
def _is_torch(xp: ModuleType) -> bool:
    return bool(array_api_compat.is_torch_namespace(xp))


def _torch_stream(torch: Any, device: int) -> int:
    """Address of PyTorch's current stream, without an object around it where PyTorch has that."""
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return int(raw(device) if raw is not None else torch.cuda.current_stream(device).cuda_stream)
