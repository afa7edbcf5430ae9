"""Progress of runs: one live line on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hybridcore.events import Event

__all__ = ["Progress"]

_LIVE_SECONDS = 0.25
_PLAIN_SECONDS = 10.0


class Progress:
    """Event listener that shows phase, losses, real and predicted steps, credit and time left.

    Args:
        console: Where it is shown.
        every: Seconds between updates; by default a quarter on a terminal and ten elsewhere.
        clock: Tells the time.

    Attributes:
        prefix: Stands before the label of each run, such as its place in a sweep.
    """

    def __init__(
        self, console: Console, *, every: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._clock = console, clock
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._every = every if every is not None else _LIVE_SECONDS if self._live else _PLAIN_SECONDS
        self._shown = self._started = clock()
        self._loss = self._validation = math.nan
        self._credit = self._predicted = 0.0
        self.prefix = ""
        self._reset({})

    def __call__(self, event: Event, payload: Mapping[str, Any]) -> None:
        """Hear one event."""
        if event is Event.REAL_STEP:
            self._step, self._loss = payload["step"], payload["loss"]
            self._phase, self._predicted = str(payload["phase"]), payload["predicted_steps"]
            now = self._clock()
            if now - self._shown >= self._every:
                self._shown = now
                self._show(self.line())
        elif event is Event.VERDICT:
            self._credit += payload["credit_steps"] if payload["kept"] else 0.0
        elif event is Event.EVALUATION:
            self._validation = payload["loss"]
        elif event is Event.RUN_START:
            self._reset(payload)
        elif event is Event.RUN_END:
            self._console.print(Text(self.line()), soft_wrap=True)

    def _reset(self, start: Mapping[str, Any]) -> None:
        self._label = f"{start.get('arm', '')} seed {start.get('seed', 0)}"
        self._steps = int(start.get("config", {}).get("run", {}).get("steps", 0))
        self._started = self._shown = self._clock()
        self._step, self._predicted, self._credit, self._phase = 0, 0.0, 0.0, "start"
        self._loss = self._validation = math.nan

    def line(self) -> str:
        """What is shown now."""
        return " · ".join(
            (
                f"{self.prefix} {self._label}".strip(),
                f"step {self._step}/{self._steps}",
                self._phase,
                f"loss {self._loss:.4g}",
                f"validation {self._validation:.4g}",
                f"predicted {self._predicted:.0f} steps without a backward pass",
                f"credit {self._credit:.0f} steps",
                self._time(),
            )
        )

    def _time(self) -> str:
        passed = self._clock() - self._started
        if self._step >= self._steps or not self._step:
            return f"{_duration(passed)} passed"
        return f"{_duration(passed / self._step * (self._steps - self._step))} left"

    def _show(self, line: str) -> None:
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self._console.print(Text(line), soft_wrap=True)

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(Text(""), refresh=True)
            self._live.stop()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
