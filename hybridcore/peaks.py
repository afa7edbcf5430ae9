"""Most memory that a run has at once: resident in the process, and by the device's allocator (F90)."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from hybridcore.protocols import Adapter, PeakMemoryAdapter

__all__ = ["PeakMemory", "resident_bytes"]

logger = logging.getLogger("hybridcore")

_STATM = Path("/proc/self/statm")
_SECONDS = 0.05
_DEVICE_EVERY = 5
"""Readings of the process between two of the device."""


def resident_bytes() -> int | None:
    """Bytes of this process that are in physical memory now.

    None on systems other than Linux without psutil. The kernel's own high-water mark will not do: it is that
    of the whole process, which may have trained other things before.
    """
    try:
        with _STATM.open("rb", buffering=0) as file:  # a fraction of the time of a buffered one
            return int(file.read(256).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        from psutil import Process
    except ImportError:
        return None
    return int(Process().memory_info().rss)


class PeakMemory:
    """Reads memory twenty times a second in a thread, from entering the context until `summary` or its end.

    On entering, what earlier runs left is collected and freed memory given back to the system, so that runs
    of one process can be compared; what still lives, such as imported modules and cached data, stays.

    Example:
        >>> with PeakMemory() as peak:
        ...     block = bytearray(2**26)
        ...     found = peak.summary()
        >>> found["device_peak_bytes"] is None, set(found) >= {"resident_start_bytes", "resident_peak_bytes"}
        (True, True)
    """

    def __init__(self) -> None:
        self._adapter: PeakMemoryAdapter | None = None
        self._device: int | None = None
        self._start: int | None = None
        self._most: int | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        _give_back()
        self._start = self._most = resident_bytes()
        self._thread = threading.Thread(target=self._watch, name="hybridcore-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def follow(self, adapter: Adapter) -> None:
        """Read the memory of the adapter's device too, from now on, where the adapter knows it."""
        if "peak-memory" in adapter.capabilities and isinstance(adapter, PeakMemoryAdapter):
            with self._lock:
                adapter.reset_peak()
                self._adapter = adapter

    def summary(self) -> dict[str, int | None]:
        """Bytes so far.

        Returns:
            Resident when the run began, most resident, and the most that the device's allocator had in use;
            None where the system, or the adapter, does not tell.
        """
        self._read(device=True)
        return {
            "resident_start_bytes": self._start,
            "resident_peak_bytes": self._most,
            "device_peak_bytes": self._device,
        }

    def _watch(self) -> None:
        count = 0
        while not self._ended.wait(_SECONDS):
            count += 1
            self._read(device=count % _DEVICE_EVERY == 0)

    def _read(self, *, device: bool) -> None:
        with self._lock:
            now = resident_bytes()
            if now is not None:
                self._most = max(now, self._most or 0)
            if self._adapter is None or not device:
                return
            try:
                self._device = self._adapter.peak_bytes()
            except Exception as error:  # whatever the framework's allocator raises
                logger.warning("the device's memory cannot be read: %s: %s", type(error).__name__, error)
                self._adapter = self._device = None


def _give_back() -> None:
    """Give memory that was freed back to the system, where the C library can."""
    with suppress(AttributeError, OSError, TypeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)
