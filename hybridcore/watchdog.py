"""Interrupts calls into plugins that take too long (F42)."""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from threading import get_ident
from time import perf_counter

__all__ = ["Call", "TookTooLong", "Watchdog"]

logger = logging.getLogger("hybridcore")


class TookTooLong(BaseException):
    """Raised inside a call that takes too long; `Containment` catches it, so that nobody else sees it."""


class Call:
    """One call that is under way.

    Attributes:
        who: Kind and registry name, and perhaps more; None for the engine's own code, which a plugin has
            called and which must not be interrupted.
        method: What was called.
        started: When, by `time.perf_counter`; time spent in calls inside it is not counted.
        thread: Where.
        fired: It was told to stop.
        warned: It was told to stop, and went on.
    """

    __slots__ = ("fired", "method", "started", "thread", "warned", "who")

    def __init__(self, who: tuple[object, ...] | None, method: str) -> None:
        self.who, self.method = who, method
        self.started, self.thread = perf_counter(), get_ident()
        self.fired = self.warned = False


class Watchdog:
    """A thread that looks at the call under way now and then; it is started by the first call.

    The exception must not reach a caller whose call has just ended. So a call that ends first leaves `calls`
    and then reads `_fired`, while the watchdog first sets `_fired` and then reads `calls`: one of the two
    sees the other, and an exception that is still pending is taken back.

    Args:
        seconds: Longest time of a call; 0 never interrupts.

    Attributes:
        calls: Calls under way, the innermost last.

    Example:
        >>> dog, call = Watchdog(60.0), Call(("predictor", "mine"), "predict")
        >>> dog.enter(call)
        >>> dog.leave(call)
        >>> dog.stop()
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls: list[Call] = []
        self._fired: Call | None = None
        self._lock = threading.Lock()
        self._stop: threading.Event | None = None

    def enter(self, call: Call) -> None:
        """A call begins."""
        self.calls.append(call)
        if self._stop is None:
            self._start()
        if call.who is None and self._fired is not None:
            self._take_back()
            raise TookTooLong

    def leave(self, call: Call) -> None:
        """A call has ended; may be said twice, since what it stands in may be interrupted once."""
        calls = self.calls
        if calls and calls[-1] is call:
            calls.pop()
        if self._fired is not None:
            self._take_back()
        if calls:
            calls[-1].started += perf_counter() - call.started

    def _start(self) -> None:
        self._stop = stop = threading.Event()
        if self.seconds > 0.0:
            arguments = (weakref.ref(self), stop, min(1.0, self.seconds / 8.0))
            thread = threading.Thread(target=_watch, args=arguments, name="hybridcore-watchdog", daemon=True)
            thread.start()
            weakref.finalize(self, stop.set)

    def stop(self) -> None:
        """End the thread; the next call starts it again."""
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def look(self) -> None:
        """Interrupt the innermost call where it has taken too long."""
        with self._lock:
            call = self.calls[-1] if self.calls else None
            if call is None or call.who is None:
                return
            late = perf_counter() - call.started - self.seconds
            if late < 0.0:
                return
            if call.fired:
                if not call.warned and late > min(1.0, self.seconds):
                    call.warned = True
                    self._warn(call)
                return
            self._fired = call
            if not self.calls or self.calls[-1] is not call:
                self._fired = None
                return
            call.fired = True
            _throw(call.thread, TookTooLong)

    def _take_back(self) -> None:
        with self._lock:
            if self._fired is not None and self._fired.fired:
                _throw(self._fired.thread, None)
            self._fired = None

    def _warn(self, call: Call) -> None:
        logger.warning(
            "%s of %s has taken more than %g s and cannot be interrupted: it waits, or runs code that is "
            "not Python; training goes on when it returns",
            call.method,
            " ".join(repr(part) if index else str(part) for index, part in enumerate((call.who or ())[:2])),
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
