"""GPU runs that repeat bit for bit, nearly: arms differ by what they do, not by the order of sums."""

from __future__ import annotations

import os

import torch

__all__ = ["repeatable"]


def repeatable(device: torch.device) -> None:
    """Let PyTorch take kernels without atomics, in this process from now on; nothing on a CPU.

    A convolution's gradient is otherwise summed in another order in every run, and two runs of the same loop
    end some thousandths apart. The backward pass of memory-efficient attention stays as it is: PyTorch makes
    it repeatable only where a kernel that cannot be is an error. Call it before the first matrix product on
    the device.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
