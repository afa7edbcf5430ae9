"""The kernel set on the processor: CuPy's stand-in, PyTorch's CPU tensors."""

from __future__ import annotations

import sys

import pytest

sys.path.insert(0, str(__import__("pathlib").Path(__file__).parent))

import emulation

from hybridcore_cupy import CupyKernels, device, rollout


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def emulated(library_folder, monkeypatch):
    """The kernel set, its CUDA sources compiled for the processor."""
    if emulation.COMPILER is None:
        pytest.skip("g++ is not installed: the CUDA sources are not run on the processor")
    monkeypatch.setitem(sys.modules, "cupy", emulation.fake_cupy(library_folder))
    monkeypatch.setattr(device, "THREADS", 64)
    monkeypatch.setattr(device, "SUMS_PER_PROCESSOR", 3)
    device._ready.devices.clear()
    rollout._places.found.clear()
    for cached in (device.kernel, device.processors, device._handle):
        cached.cache_clear()
    yield CupyKernels()
    device._ready.devices.clear()
    rollout._places.found.clear()
    for cached in (device.kernel, device.processors, device._handle):
        cached.cache_clear()
