"""The most that TensorFlow's GPU allocators had in use (F90)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

__all__ = ["peak_bytes", "reset_peak"]


def reset_peak(devices: Sequence[str]) -> None:
    """Let the allocators count their peak anew, from what is in use now.

    Args:
        devices: Names such as ``"gpu:0"``; the CPU is passed over, its allocator does not count.
    """
    for device in _gpus(devices):
        tf.config.experimental.reset_memory_stats(device)


def peak_bytes(devices: Sequence[str]) -> int | None:
    """Most bytes in use at once since `reset_peak`, on the GPU where it is most; None without one."""
    found = [int(tf.config.experimental.get_memory_info(device)["peak"]) for device in _gpus(devices)]
    return max(found, default=None)


def _gpus(devices: Sequence[str]) -> list[str]:
    return [device.upper() for device in devices if device.startswith("gpu")]
