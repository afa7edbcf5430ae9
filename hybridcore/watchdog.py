"""Interrupts calls into plugins that take too long (F42)."""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from time import perf_counter
from typing import Any

__all__ = ["Call", "TookTooLong", "Watchdog"]

logger = logging.getLogger("hybridcore")


class TookTooLong(BaseException):
    """Raised inside a call that takes too long; `Containment` catches it, so that nobody else sees it."""


Call = list[Any]
"""One call that is under way: kind and registry name, what was called, and the thread.

None stands in the first place for the engine's own code, which a plugin has called and which must not be
interrupted.
"""


class Watchdog:
    """A thread that looks at the call under way now and then; it is started by the first call.

    The exception must not reach a caller whose call has just ended. So a call that ends first leaves `calls`
    and then reads `_fired`, while the watchdog first sets `_fired` and then reads `calls`: one of the two
    sees the other, and an exception that is still pending is taken back.

    Calls cost next to nothing: they leave no time, and the watchdog takes that since it first saw one as the
    innermost. So time in calls inside a call is not counted, and a limit is kept to within a second.

    Args:
        seconds: Longest time of a call; 0 never interrupts.

    Attributes:
        calls: Calls under way, the innermost last.
        fired: The call that is being told to stop.
        sleeps: There is no thread yet.

    Example:
        >>> dog, call = Watchdog(60.0), [("predictor", "mine"), "predict", threading.get_ident()]
        >>> dog.enter(call)
        >>> dog.leave(call)
        >>> dog.stop()
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls: list[Call] = []
        self.fired: Call | None = None
        self.sleeps = True
        self._thrown = self._warned = False
        self._seen: Call | None = None
        self._since = 0.0
        self._told: Call | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def enter(self, call: Call) -> None:
        """A call begins."""
        self.calls.append(call)
        if self.sleeps:
            self.wake()
        if call[0] is None and self.fired is not None:
            self.take_back()
            raise TookTooLong

    def leave(self, call: Call) -> None:
        """A call has ended; may be said twice, since what it stands in may be interrupted once."""
        calls = self.calls
        if calls and calls[-1] is call:
            calls.pop()
        if self.fired is not None:
            self.take_back()

    def wake(self) -> None:
        """Start the thread."""
        self.sleeps, self._stop = False, threading.Event()
        if self.seconds > 0.0:
            arguments = (weakref.ref(self), self._stop, min(1.0, self.seconds / 8.0))
            thread = threading.Thread(target=_watch, args=arguments, name="hybridcore-watchdog", daemon=True)
            thread.start()
            weakref.finalize(self, self._stop.set)

    def stop(self) -> None:
        """End the thread; the next call starts it again."""
        self._stop.set()
        self.sleeps = True

    def look(self) -> None:
        """Interrupt the innermost call where it has taken too long."""
        with self._lock:
            try:
                call = self.calls[-1]
            except IndexError:
                self._seen = None
                return
            now = perf_counter()
            if call is not self._seen:
                self._seen, self._since, self._warned = call, now, False
                return
            late = now - self._since - self.seconds
            if call[0] is None or late < 0.0:
                return
            if call is self._told:
                if not self._warned and late > min(1.0, self.seconds):
                    self._warned = True
                    self._warn(call)
                return
            self.fired = call
            if not self.calls or self.calls[-1] is not call:
                self.fired = None
                return
            self._told, self._thrown = call, True
            _throw(call[2], TookTooLong)

    def take_back(self) -> None:
        """The call that was told to stop has ended: let nothing of it be left."""
        with self._lock:
            if self.fired is not None and self._thrown:
                _throw(self.fired[2], None)
            self.fired, self._thrown = None, False

    def _warn(self, call: Call) -> None:
        logger.warning(
            "%s of %s has taken more than %g s and cannot be interrupted: it waits, or runs code that is "
            "not Python; training goes on when it returns",
            call[1],
            f"{call[0][0]} {call[0][1]!r}",
            self.seconds,
        )


def _watch(dog: weakref.ref[Watchdog], stop: threading.Event, interval: float) -> None:
    while not stop.wait(interval):
        alive = dog()
        if alive is None:
            return
        alive.look()
        del alive


def _throw(thread: int, kind: type[BaseException] | None) -> None:
    """Let a thread raise at its next chance; None takes back what it has not raised yet."""
    api = getattr(ctypes, "pythonapi", None)  # CPython's
    if api is not None:
        pending = None if kind is None else ctypes.py_object(kind)
        api.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), pending)
