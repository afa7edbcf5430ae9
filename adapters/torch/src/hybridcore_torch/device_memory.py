"""What PyTorch's CUDA allocator has left, and the most that it had in use (F66, F90)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["free_bytes", "peak_bytes", "reset_peak"]


def free_bytes(devices: Sequence[torch.device]) -> int | None:
    """Bytes that the fullest of the CUDA devices has left; None without one.

    What PyTorch's allocator holds without using it is free.
    """
    return min(map(_free_on, devices)) if devices else None


def _free_on(device: torch.device) -> int:
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + held


def reset_peak(devices: Sequence[torch.device]) -> None:
    """Let the allocators count their peak anew, from what is in use now."""
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(devices: Sequence[torch.device]) -> int | None:
    """Most bytes of tensors since `reset_peak`, on the CUDA device where it is most; None without one."""
    return max(map(torch.cuda.max_memory_allocated, devices)) if devices else None
