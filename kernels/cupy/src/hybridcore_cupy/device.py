"""Compiling and launching: the only place that imports CuPy."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from importlib import import_module, resources
from typing import Any

import numpy as np

__all__ = ["THREADS", "blocks_for", "kernel", "launch", "load_cupy", "processors", "source"]

THREADS = 256
"""Threads per block; a multiple of 32."""

SUMS_PER_PROCESSOR = 16
"""Sums of blocks that a reduction leaves per multiprocessor: enough blocks, and little to fetch."""


def load_cupy() -> Any:
    """The module `cupy`.

    Raises:
        ImportError: It is not installed, or does not fit the driver.
    """
    return sys.modules.get("cupy") or import_module("cupy")


def source(name: str) -> str:
    """CUDA source of a file of this package, the shared part in front."""
    folder = resources.files("hybridcore_cupy") / "cuda"
    return "\n".join((folder / f).read_text(encoding="utf-8") for f in ("common.cuh", f"{name}.cu"))


@functools.cache
def kernel(file: str, name: str, count: int = 0) -> Any:
    """A compiled kernel; CuPy keeps compiled code on disk.

    Args:
        file: Source file without its ending.
        name: The kernel.
        count: Number of snapshots K that `snapshots` is compiled for.
    """
    options = ("-std=c++17", *((f"-DK={count}",) if count else ()))
    return load_cupy().RawModule(code=source(file), options=options).get_function(name)


@functools.cache
def processors(device: int) -> int:
    """Multiprocessors of a device."""
    return int(load_cupy().cuda.Device(device).attributes["MultiProcessorCount"])


def blocks_for(count: int, items: int, device: int, quantities: int = 0) -> int:
    """Blocks of a launch.

    One tile per block where nothing is summed, since the device hands out blocks better than a loop does; a
    reduction leaves a sum per block and so has fewer, each with several tiles.

    Args:
        count: Numbers per array.
        items: Numbers that a thread takes at once.
        device: Index of the device.
        quantities: Sums that each block makes.
    """
    tiles = max(1, -(-count // (items * THREADS)))
    if not quantities:
        return tiles
    return min(tiles, max(2, SUMS_PER_PROCESSOR // quantities) * processors(device))


class _Ready(threading.local):
    """Devices whose context this thread has made current once."""

    def __init__(self) -> None:
        self.devices: set[int] = set()


_ready = _Ready()


def launch(
    function: Any, grid: tuple[int, int], block: ctypes.Structure, stream: int, device: int, shared: int = 0
) -> None:
    """Queue a kernel on a stream; does not wait.

    The first launch of a thread goes through CuPy, which makes the device's context current; later ones call
    the driver directly, which costs a tenth of that.

    Args:
        function: What `kernel` gave.
        grid: Blocks per axis.
        block: Its argument block, passed by value.
        stream: Address of a CUDA stream.
        device: Index of the device.
        shared: Bytes of dynamic shared memory.
    """
    cuda = load_cupy().cuda
    current = device in _ready.devices and cuda.runtime.getDevice() == device
    handle = _handle(function, device) if current else 0
    if handle:
        arguments = ctypes.c_void_p(ctypes.addressof(block))
        x, y = grid
        pointers = ctypes.addressof(arguments)
        cuda.driver.launchKernel(handle, x, y, 1, THREADS, 1, 1, shared, stream, pointers, 0)
        return
    argument = np.frombuffer(bytearray(block), dtype=np.dtype(type(block))).reshape(())
    with cuda.Device(device), cuda.ExternalStream(stream, device):
        function(grid, (THREADS,), (argument,), shared_mem=shared)
    _ready.devices.add(device)


@functools.cache
def _handle(function: Any, device: int) -> int:
    """Address of the driver's own object on the current device; 0 where CuPy does not show it."""
    if not hasattr(load_cupy().cuda.driver, "launchKernel"):
        return 0
    return int(getattr(getattr(function, "kernel", None), "ptr", 0))
