"""Registration, choice and fall-back of the kernel set on a machine without a GPU."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace

import array_api_compat.numpy
import array_api_compat.torch as xp
import torch

from hybridcore.kernels import choose
from hybridcore.plugins import load_registry
from hybridcore_cupy import CupyKernels, device


def adapter(name="cuda:0"):
    """What `choose` looks at, on CPU tensors that call themselves CUDA ones."""
    return SimpleNamespace(
        xp=xp,
        device=name,
        layout=SimpleNamespace(total=1000, bucket_dtype="float32"),
        read_params=lambda: (torch.zeros(4),),
        synchronize=lambda: None,
    )


def test_the_entry_point_registers_it():
    assert load_registry().get("kernel", "cupy") is CupyKernels


def test_importing_it_imports_no_cupy_and_no_framework():
    code = "import sys, hybridcore_cupy.plugin; print({'cupy', 'torch', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_it_serves_cuda_devices_only(emulated):
    assert emulated.supports(xp, "cuda:0", "float32")
    assert not emulated.supports(xp, "cpu", "float32")
    assert not emulated.supports(xp, "cuda:0", "float64")
    assert not emulated.supports(array_api_compat.numpy, "cuda:0", "float32")


def test_f70_the_trial_finds_every_operation_right(emulated):
    chosen = choose("cupy", {"cupy": CupyKernels}, adapter())
    assert {c.operation: c.name for c in chosen.choices} == dict.fromkeys(
        [c.operation for c in chosen.choices], "cupy"
    )
    a = (torch.arange(5.0),)
    assert chosen.products(a, a, xp) == (30.0, 30.0, 30.0)


def test_f66_a_missing_cupy_is_one_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with caplog.at_level(logging.WARNING, "hybridcore"):
        chosen = choose("auto", {"cupy": CupyKernels}, adapter())
    assert len(caplog.records) == 1 and "cupy" in caplog.records[0].getMessage()
    assert chosen.used("gram") == "reference"


def test_f66_a_failing_launch_falls_back_in_the_middle_of_a_run(emulated, monkeypatch, caplog):
    chosen = choose("cupy", {"cupy": CupyKernels}, adapter())

    def launch(**arguments):
        raise MemoryError("out of memory")

    monkeypatch.setattr(device.load_cupy(), "RawModule", launch)
    device.kernel.cache_clear()
    a, b = (torch.arange(6.0),), (torch.ones(6),)
    before = a[0].clone()
    with caplog.at_level(logging.WARNING, "hybridcore"):
        assert torch.equal(chosen.combine([a, b], [2.0, 1.0], xp)[0], 2.0 * before + 1.0)
        assert chosen.gram([a], xp)[0, 0] == 55.0
    assert torch.equal(a[0], before)
    assert len(caplog.records) == 1 and "out of memory" in chosen.failure
