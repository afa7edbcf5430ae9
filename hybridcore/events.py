"""The events of a run, in the order in which they happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from hybridcore.containment import Containment, Failure, Member

__all__ = ["Event", "EventBus", "Listener"]


class Event(StrEnum):
    """What happens in a run; this docstring is the loop.

    ::

        RUN_START
        for each batch:
            FAULT                     a fault was injected on purpose (`hybridcore run --inject`)
            REAL_STEP                 forward, backward, update (Warmup, Full, Correct)
              or STEP_SKIPPED         the batch was not learned from; weights unchanged
              or PREDICTED_STEP       a share of a predicted change, no backward pass (mode "step")
            SIGNAL                    a monitor found a sign of divergence
            RECOVERY                  what was done about it, and why
            TUNING                    the engine turned learning rate or clipping by itself
            PROBE                     forward-only losses on held-out examples
            VERDICT                   a trial is kept and credited, or failed
            ROLLBACK                  the state before a failed trial, or an earlier good one, came back
            PHASE_END, PHASE_START    the controller chose the next phase
            RESIDUAL                  what a jump promised was compared with what came of it
            CORRECTION                an applied or pending change was corrected, or the correction reverted
            JUMP                      a predicted weight change was applied (mode "jump": between batches)
              or JUMP_REFUSED         a proposed change was not applied, with the reason
            PLUGIN_FAILED             a plugin raised, hung or gave what it must not, and was dropped
            EVALUATION                validation loss, measured by the host loop
        RUN_END
    """

    RUN_START = "run-start"
    FAULT = "fault"
    REAL_STEP = "real-step"
    STEP_SKIPPED = "step-skipped"
    PREDICTED_STEP = "predicted-step"
    SIGNAL = "signal"
    RECOVERY = "recovery"
    TUNING = "tuning"
    PROBE = "probe"
    VERDICT = "verdict"
    ROLLBACK = "rollback"
    PHASE_END = "phase-end"
    PHASE_START = "phase-start"
    RESIDUAL = "residual"
    CORRECTION = "correction"
    JUMP = "jump"
    JUMP_REFUSED = "jump-refused"
    PLUGIN_FAILED = "plugin-failed"
    EVALUATION = "evaluation"
    RUN_END = "run-end"


Listener = Callable[[Event, Mapping[str, Any]], None]


class EventBus:
    """Plain ordered list of listeners; the first one added hears each event first.

    A listener that raises an `Exception` is dropped, and the run goes on (F42). To stop a run from one, raise
    KeyboardInterrupt, or an exception of your own that derives from BaseException.

    Args:
        containment: Calls the listeners; one with the defaults of ``[plugins]`` if None.

    Attributes:
        containment: See above; an engine puts its own here.
        step: Gives the real step for events about listeners.

    Example:
        >>> heard = []
        >>> bus = EventBus()
        >>> bus.listen(lambda event, payload: heard.append((event.value, payload["step"])))
        >>> bus.emit(Event.JUMP, step=3)
        >>> heard
        [('jump', 3)]
    """

    def __init__(self, containment: Containment | None = None) -> None:
        self._essential: list[Listener] = []
        self._members: list[Member] = []
        self.step: Callable[[], int] = lambda: 0
        self.containment = containment if containment is not None else Containment()

    @property
    def containment(self) -> Containment:
        """Who calls the listeners."""
        return self._containment

    @containment.setter
    def containment(self, containment: Containment) -> None:
        self._containment = containment
        containment.tell = self._tell

    def listen(
        self, listener: Listener, *, kind: str = "listener", name: str = "", essential: bool = False
    ) -> None:
        """Add a listener; it is called as ``listener(event, payload)``.

        Args:
            listener: Hears every event.
            kind: ``"listener"`` or ``"tracker"``, for messages.
            name: Its name; that of the function or class if empty.
            essential: The run makes no sense without it: its errors are raised, and it hears each event
                before those that are not essential.
        """
        if essential:
            self._essential = [*self._essential, listener]
        else:
            called = name or getattr(listener, "__qualname__", type(listener).__qualname__)
            self._members = [*self._members, (kind, called, listener)]

    def leave(self, listener: Listener) -> None:
        """Remove a listener, if it is still there."""
        self._members = [m for m in self._members if m[2] is not listener]

    @property
    def heard(self) -> bool:
        """Whether anybody listens; building a payload for nobody costs as much as a small step's share."""
        return bool(self._members or self._essential)

    def emit(self, event: Event, **payload: Any) -> None:
        """Call every listener in order with the event and its payload, which they cannot change.

        Raises:
            PluginFailedError: A listener failed, and ``plugins.on_error`` is ``"raise"``.
        """
        shown = MappingProxyType(payload)
        for listener in self._essential:
            listener(event, shown)
        if self._members:
            self._containment.each(event, self._members, event, shown, drop=self._drop)

    def _drop(self, member: Member) -> None:
        self._members = [m for m in self._members if m is not member]

    def _tell(self, failure: Failure) -> None:
        self.emit(
            Event.PLUGIN_FAILED,
            step=self.step(),
            kind=failure.kind,
            name=failure.name,
            method=failure.method,
            reason=failure.reason,
        )
