"""Arrays of the frameworks as addresses on a device: no copies, the framework's own stream and memory."""

from __future__ import annotations

import sys
from collections import deque
from types import ModuleType
from typing import Any

import array_api_compat

from hybridcore_cupy.device import load_cupy

__all__ = ["DlpackArrays", "TorchArrays", "open_arrays"]


class TorchArrays:
    """Tensors of PyTorch by their addresses, which costs less than a DLPack capsule each.

    PyTorch's allocator reuses memory in the order of its stream, so that nothing has to be kept alive.
    """

    def __init__(self, like: Any) -> None:
        self._torch = sys.modules["torch"]
        self._like = like
        self.device = int(like.device.index or 0)
        current = self._torch.cuda.current_stream(like.device) if like.is_cuda else None
        self.stream = int(current.cuda_stream) if current is not None else 0
        self._held: list[Any] = []

    def pointer(self, array: Any) -> int:
        """Address of the first number; a tensor with gaps is copied first."""
        if not array.is_contiguous():
            array = array.contiguous()
            self._held.append(array)
        return int(array.data_ptr())

    def serves(self, array: Any) -> bool:
        """Whether an array is a float32 tensor on this device."""
        return bool(array.dtype == self._torch.float32 and array.device == self._like.device)

    def empty(self, shape: int | tuple[int, ...], dtype: str = "float32") -> Any:
        """New memory of PyTorch's own allocator."""
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=self._like.device)

    def give(self, array: Any) -> Any:
        """An array from `empty` as the framework's own."""
        return array

    def numbers(self, array: Any) -> list[float]:
        """An array from `empty` as Python numbers; waits for the device."""
        found: list[float] = array.tolist()
        return found

    def close(self) -> None:
        """Nothing is kept."""


class DlpackArrays:
    """Arrays of JAX and CuPy through DLPack, on CuPy's current stream.

    The exchange makes each side's stream wait for the other's, never the host. What a kernel reads is kept
    until the kernel has run.
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

    def numbers(self, array: Any) -> list[float]:
        """An array from `empty` as Python numbers; waits for the device."""
        found: list[float] = array.get().tolist()
        return found

    def close(self) -> None:
        """Keep what was read until the stream has come this far; let go of what is done."""
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(self._cupy.cuda.get_current_stream())
        self._pending.append((event, self._held))
        while self._pending and self._pending[0][0].done:
            self._pending.popleft()


def open_arrays(like: Any, xp: ModuleType) -> TorchArrays | DlpackArrays:
    """Access to arrays of the kind of `like`."""
    if array_api_compat.is_torch_namespace(xp):
        return TorchArrays(like)
    return DlpackArrays(like, xp)
