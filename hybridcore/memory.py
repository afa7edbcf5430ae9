"""Where the engine's memory is, and how much of it there is (F63, F66)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hybridcore.config import HistoryConfig, MemoryConfig
from hybridcore.errors import ModelError
from hybridcore.host_copies import PlainHostCopy
from hybridcore.layout import Buckets
from hybridcore.protocols import Adapter, HostCopy, HostMemoryAdapter, MemoryAdapter

__all__ = ["Memory", "budget_bytes", "free_host_bytes"]

MIB = 2**20


def free_host_bytes() -> int:
    """Bytes of host memory that a process could still get.

    Linux counts what its file cache would give back; elsewhere only unused pages count.
    """
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # neither Linux nor a system that tells
        return 2 * 1024 * MIB


def budget_bytes(config: HistoryConfig, adapter: Adapter | None = None) -> int:
    """Bytes that the history and snapshots may take: the configuration's, or half of what is free now."""
    if config.memory_budget_mib > 0.0:
        return int(config.memory_budget_mib * MIB)
    free = adapter.free_bytes() if isinstance(adapter, MemoryAdapter) else None
    return (free_host_bytes() if free is None else free) // 2


class Memory:
    """Tells an adapter what to keep in host memory, and the history where its window means go.

    Args:
        adapter: The adapter; one on the CPU has nothing to move.
        config: What should leave the device.

    Attributes:
        apart: Whether the model lies on an accelerator, so that host memory is other memory.
        snapshots_stay: Whether snapshots are kept beside the model and could leave.
        to_host: Begins a copy of a window mean into host memory; None where means stay on the device. On
            the CPU the copy is made all the same, and counts as memory of the model's.

    Raises:
        ModelError: The adapter holds its arrays on an accelerator and cannot move them.

    Example:
        >>> from hybridcore.reference import quadratic
        >>> memory = Memory(quadratic(seed=0), MemoryConfig(history="host"))
        >>> memory.apart, memory.to_host is None
        (False, False)
    """

    def __init__(self, adapter: Adapter, config: MemoryConfig) -> None:
        self._offload = config.offload_optimizer
        self._adapter = adapter if isinstance(adapter, MemoryAdapter) else None
        self.apart = not adapter.device.lower().startswith("cpu")
        self.snapshots_stay = config.snapshots == "device" and self._adapter is not None
        wanted = config.offload_optimizer or config.snapshots == "host"
        if self._adapter is None and wanted and self.apart:
            raise ModelError(
                f"the adapter {adapter.name!r} keeps everything on {adapter.device}",
                where="memory",
                got=f"snapshots = {config.snapshots!r}, offload_optimizer = {config.offload_optimizer}",
                expected="an adapter with the capability 'memory'",
                fix="leave these two keys of the table [memory] out",
            )
        if self._adapter is not None:
            self._adapter.keep_snapshots(config.snapshots)
        self.to_host: Callable[[Buckets], HostCopy] | None = None
        if config.history == "host":
            self.to_host = partial(PlainHostCopy, xp=adapter.xp)
            if isinstance(adapter, HostMemoryAdapter):
                self.to_host = adapter.to_host

    def optimizer_rests(self) -> None:
        """Hear that no optimizer is needed for a while; the adapter brings it back by itself."""
        if self._offload and self._adapter is not None:
            self._adapter.offload_optimizer()
