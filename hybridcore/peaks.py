"""Most memory that a run has at once: resident in the process, and by the device's allocator (F90)."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import threading
from contextlib import closing, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from hybridcore.protocols import Adapter, PeakMemoryAdapter

__all__ = ["PEAKS", "PeakMemory", "resident_bytes"]

logger = logging.getLogger("hybridcore")

PEAKS = ("resident_start_bytes", "resident_peak_bytes", "device_peak_bytes")
"""Keys of `PeakMemory.summary`: like times, they differ between runs that are otherwise the same."""

_STATM = Path("/proc/self/statm")
_SECONDS = 0.1
_DEVICE_EVERY = 5
"""Readings of the process between two of the device."""


class _Resident:
    """Reads the resident set of this process again and again: two microseconds from the file that stays open.

    The kernel's own high-water mark will not do: it is that of the whole process, which may have trained
    other things before.
    """

    def __init__(self) -> None:
        self._file: FileIO | None = None
        self._process: Any = None
        try:
            self._file = FileIO(_STATM)
            self._page = os.sysconf("SC_PAGE_SIZE")
        except OSError:
            with suppress(ImportError):
                from psutil import Process

                self._process = Process()

    def nbytes(self) -> int | None:
        """Bytes now; None where the system does not tell."""
        if self._file is not None:
            return int(os.pread(self._file.fileno(), 256, 0).split()[1]) * self._page
        return None if self._process is None else int(self._process.memory_info().rss)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def resident_bytes() -> int | None:
    """Bytes of this process that are in physical memory now; None on other systems than Linux without psutil.

    Example:
        >>> found = resident_bytes()
        >>> found is None or found > 2**20
        True
    """
    with closing(_Resident()) as resident:
        return resident.nbytes()


class PeakMemory:
    """Reads memory ten times a second in a thread, from entering the context to its end.

    On entering, what earlier runs left is collected and freed memory given back to the system, so that runs
    of one process can be compared; what still lives, such as imported modules and cached data, stays.

    Example:
        >>> with PeakMemory() as peak:
        ...     block = bytearray(2**26)
        ...     found = peak.summary()
        >>> found["device_peak_bytes"] is None, tuple(found) == PEAKS
        (True, True)
    """

    def __init__(self) -> None:
        self._adapter: PeakMemoryAdapter | None = None
        self._device: int | None = None
        self._start: int | None = None
        self._most: int | None = None
        self._resident = _Resident()
        self._lock, self._running = threading.Lock(), threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        _give_back()
        self._start = self._most = self._resident.nbytes()
        self._running.acquire()
        self._thread = threading.Thread(target=self._watch, name="hybridcore-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running.release()
        if self._thread is not None:
            self._thread.join()
        self._resident.close()

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
        return dict(zip(PEAKS, (self._start, self._most, self._device), strict=True))

    def _watch(self) -> None:
        count = 0
        while not self._running.acquire(timeout=_SECONDS):  # an event would take several times as long
            count += 1
            self._read(device=count % _DEVICE_EVERY == 0)

    def _read(self, *, device: bool) -> None:
        with self._lock:
            now = self._resident.nbytes()
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
