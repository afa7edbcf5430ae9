"""Runs on a GPU that repeat bit for bit, so that arms differ by what they do and not by the order of sums."""

from __future__ import annotations

import os

import torch

__all__ = ["repeatable"]


def repeatable(device: torch.device) -> None:
    """Let PyTorch take kernels without atomics, in this process from now on; nothing on a CPU.

    A convolution's gradient is otherwise summed in another order in every run, and two runs of the same loop
    end some thousandths apart. Call it before the first matrix product on the device.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
