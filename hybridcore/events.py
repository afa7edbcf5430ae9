"""The events of a run, in the order in which they happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

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
    EVALUATION = "evaluation"
    RUN_END = "run-end"


Listener = Callable[[Event, Mapping[str, Any]], None]


class EventBus:
    """Plain ordered list of listeners; the first one added hears each event first.

    Example:
        >>> heard = []
        >>> bus = EventBus()
        >>> bus.listen(lambda event, payload: heard.append((event.value, payload["step"])))
        >>> bus.emit(Event.JUMP, step=3)
        >>> heard
        [('jump', 3)]
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Add a listener; it is called as ``listener(event, payload)``."""
        self._listeners.append(listener)

    @property
    def heard(self) -> bool:
        """Whether anybody listens; building a payload for nobody costs as much as a small step's share."""
        return bool(self._listeners)

    def emit(self, event: Event, **payload: Any) -> None:
        """Call every listener in order with the event and its payload."""
        for listener in self._listeners:
            listener(event, payload)
