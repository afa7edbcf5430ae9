"""The trackers of one run: they hear every event, and are closed at its end, whatever that is (F42)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

from hybridcore.events import Event, EventBus, Listener
from hybridcore.protocols import Tracker

__all__ = ["Tracking"]


class Tracking:
    """Context in which trackers listen.

    Args:
        trackers: Who listens.
        events: To what.

    Example:
        >>> class Prints:
        ...     name = "prints"
        ...     def on_event(self, event, payload):
        ...         print(event, payload["loss"])
        ...     def close(self):
        ...         print("closed")
        >>> bus = EventBus()
        >>> with Tracking([Prints()], bus):
        ...     bus.emit(Event.EVALUATION, step=1, loss=0.5)
        evaluation 0.5
        closed
    """

    def __init__(self, trackers: Sequence[Tracker], events: EventBus) -> None:
        self._events = events
        self._members = [(tracker, _listener(tracker)) for tracker in trackers]

    def __enter__(self) -> Tracking:
        for tracker, listener in self._members:
            self._events.listen(listener, kind="tracker", name=tracker.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        containment = self._events.containment
        with ExitStack() as stack:  # one that fails keeps no other from being closed
            stack.callback(containment.watchdog.stop)
            for tracker, listener in reversed(self._members):
                close = partial(containment.call, "tracker", tracker.name, "close", tracker.close)
                stack.callback(close, otherwise=None)
                stack.callback(self._events.leave, listener)


def _listener(tracker: Tracker) -> Listener:
    def hear(event: Event, payload: Mapping[str, Any]) -> None:
        tracker.on_event(event.value, payload)

    return hear
