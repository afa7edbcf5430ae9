"""Compiling and launching: the only place that imports CuPy."""

from __future__ import annotations

import functools
from importlib import import_module, resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["THREADS", "blocks_for", "kernel", "launch", "load_cupy", "processors", "source"]

THREADS = 256
"""Threads per block; a multiple of 32."""

BLOCKS_PER_PROCESSOR = 8


def load_cupy() -> Any:
    """The module `cupy`.

    Raises:
        ImportError: It is not installed, or does not fit the driver.
    """
    return import_module("cupy")


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


def blocks_for(count: int, device: int) -> int:
    """Blocks that keep a device busy on `count` numbers without more partial sums than it needs."""
    return max(1, min(BLOCKS_PER_PROCESSOR * processors(device), -(-count // (4 * THREADS))))


@functools.cache
def _stream(pointer: int, device: int) -> Any:
    return load_cupy().cuda.ExternalStream(pointer, device)


def launch(
    function: Any, grid: tuple[int, ...], block: NDArray[Any], stream: int, device: int, shared: int = 0
) -> None:
    """Queue a kernel on a stream; does not wait.

    Args:
        function: What `kernel` gave.
        grid: Blocks per axis.
        block: Its argument block, one element of a structured dtype, passed by value.
        stream: Address of a CUDA stream.
        device: Index of the device.
        shared: Bytes of dynamic shared memory.
    """
    cupy = load_cupy()
    with cupy.cuda.Device(device), _stream(stream, device):
        function(grid, (THREADS,), (block,), shared_mem=shared)


def new_block(dtype: np.dtype[Any]) -> NDArray[Any]:
    """An empty argument block."""
    return np.zeros((), dtype=dtype)
