"""A stand-in for CuPy that runs the CUDA sources on the processor, compiled by the host's C++ compiler.

Every thread of a block is a thread of the processor; barriers and shuffles are real, so that indexing,
reductions and shared memory are tested without a GPU. Blocks run one after the other.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np

COMPILER = shutil.which("g++")

SHIM = r"""
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
using namespace std;
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define DYNAMIC_SHARED(type, name) type* name = (type*)dynamic_memory.data()
struct float4 { float x, y, z, w; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct Place { int x, y; };
static thread_local Place threadIdx;
static Place blockIdx, blockDim, gridDim;
static vector<char> dynamic_memory;
static unique_ptr<barrier<>> everyone;
static vector<unique_ptr<barrier<>>> warps_;
static vector<double> exchange;
template <class T> T __ldg(const T* p) {
    // What the device would trap on.
    if ((uintptr_t)p % sizeof(T)) abort();
    return *p;
}
inline void __syncthreads() { everyone->arrive_and_wait(); }
template <class T> T swap_from(T value, int lane) {
    auto& together = *warps_[threadIdx.x / 32];
    exchange[threadIdx.x] = (double)value;
    together.arrive_and_wait();
    T found = lane < 32 ? (T)exchange[threadIdx.x / 32 * 32 + lane] : value;
    together.arrive_and_wait();
    return found;
}
template <class T> T __shfl_down_sync(unsigned, T v, int n) { return swap_from(v, threadIdx.x % 32 + n); }
template <class T> T __shfl_xor_sync(unsigned, T v, int n) { return swap_from(v, (threadIdx.x % 32) ^ n); }
template <class T> T __ldcs(const T* p) { return __ldg(p); }
template <class T> void __stcs(T* p, T value) {
    if ((uintptr_t)p % sizeof(T)) abort();
    *p = value;
}
inline unsigned __float_as_uint(float v) { unsigned r; memcpy(&r, &v, 4); return r; }
inline float __uint_as_float(unsigned v) { float r; memcpy(&r, &v, 4); return r; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
"""

ENTRY = r"""
extern "C" void launch_NAME(int gx, int gy, int threads, int shared, const void* block) {
    TYPE args;
    memcpy(&args, block, sizeof args);
    blockDim = {threads, 1}; gridDim = {gx, gy};
    exchange.assign(threads, 0.0);
    for (int y = 0; y < gy; ++y) for (int x = 0; x < gx; ++x) {
        blockIdx = {x, y};
        dynamic_memory.assign(shared + 16, (char)0x7f);
        everyone = make_unique<barrier<>>(threads);
        warps_.clear();
        for (int w = 0; w < threads / 32; ++w) warps_.push_back(make_unique<barrier<>>(32));
        vector<thread> running;
        for (int t = 0; t < threads; ++t) running.emplace_back([&, t] { threadIdx = {t, 0}; NAME(args); });
        for (auto& one : running) one.join();
    }
}
extern "C" int size_NAME() { return sizeof(TYPE); }
"""


class RawModule:
    """Compiles a source with the shim in front; keeps libraries by their content."""

    folder: Path

    def __init__(self, code: str, options: tuple[str, ...] = ()) -> None:
        kernels = re.findall(r'extern "C" __global__ void (\w+)\((\w+) ', code)
        body = re.sub(r"#pragma unroll.*", "", code)
        entries = "".join(ENTRY.replace("NAME", n).replace("TYPE", t) for n, t in kernels)
        text = SHIM + body + entries
        macros = [o for o in options if o.startswith("-D")]
        key = hashlib.sha256((text + " ".join(macros)).encode()).hexdigest()[:16]
        library = self.folder / f"{key}.so"
        if not library.exists():
            file = self.folder / f"{key}.cpp"
            file.write_text(text)
            flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-ffp-contract=off", "-w", *macros]
            subprocess.run([COMPILER, *flags, str(file), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))

    def get_function(self, name: str):
        launch, size = getattr(self._library, f"launch_{name}"), getattr(self._library, f"size_{name}")
        return Kernel(launch, size())


class Kernel:
    """A kernel that is launched by a call, or through the driver by its address."""

    known: ClassVar[dict[int, Kernel]] = {}

    def __init__(self, launch, size: int) -> None:
        self._launch, self._size = launch, size
        self.kernel = SimpleNamespace(ptr=len(self.known) + 1)
        self.known[self.kernel.ptr] = self

    def __call__(self, grid, block, args, shared_mem=0):
        (argument,) = args
        assert argument.itemsize == self._size, "the argument block does not mirror the CUDA struct"
        self._launch(grid[0], grid[1], block[0], shared_mem, ctypes.c_void_p(argument.ctypes.data))

    @classmethod
    def by_driver(cls, function, x, y, z, threads, ty, tz, shared, stream, pointers, extra):
        """What ``cuLaunchKernel`` takes; `pointers` is an array with the address of the one argument."""
        assert (z, ty, tz, extra) == (1, 1, 1, 0)
        (argument,) = (ctypes.c_void_p * 1).from_address(pointers)
        cls.known[function]._launch(x, y, threads, shared, ctypes.c_void_p(argument))


class Memory:
    """Memory of the "device", or page-locked memory: bytes of the host."""

    def __init__(self, size: int) -> None:
        self._bytes = ctypes.create_string_buffer(b"\x7f" * size, size)
        self.ptr = ctypes.addressof(self._bytes)


def copy(to: int, source: int, size: int, kind: int, stream: int) -> None:
    """``cudaMemcpyAsync`` that is done when it returns."""
    assert kind in (1, 2) and size > 0
    ctypes.memmove(to, source, size)


class Device(nullcontext):
    """Any device; small, so that grids stride."""

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.id, self.attributes = index, {"MultiProcessorCount": 1}


def fake_cupy(folder: Path) -> ModuleType:
    """A module with the parts of CuPy that the plugin uses."""
    module = ModuleType("cupy")
    for name in ("asarray", "where", "sqrt", "linalg", "float32", "float64", "from_dlpack", "ndarray"):
        setattr(module, name, getattr(np, name))
    module.RawModule = type("RawModule", (RawModule,), {"folder": folder})
    module.cuda = SimpleNamespace(
        Device=Device,
        ExternalStream=lambda pointer, device=0: nullcontext(),
        Stream=lambda non_blocking: SimpleNamespace(ptr=0, synchronize=lambda: None),
        alloc=Memory,
        alloc_pinned_memory=ctypes.create_string_buffer,
        runtime=SimpleNamespace(getDevice=lambda: 0, memcpyAsync=copy),
        driver=SimpleNamespace(launchKernel=Kernel.by_driver),
    )
    return module
