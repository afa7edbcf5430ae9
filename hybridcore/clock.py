"""Training time: a stopwatch that evaluation does not run on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch"]


class Stopwatch:
    """Seconds since it was made, without the time spent in `paused`.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.paused():
        ...     pass
        >>> watch.elapsed() >= 0.0
        True
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._excluded = 0.0

    def elapsed(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self._start - self._excluded

    def resume(self, elapsed: float) -> None:
        """Go on from this many seconds."""
        self._start, self._excluded = time.perf_counter() - elapsed, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the block out."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._excluded += time.perf_counter() - start
