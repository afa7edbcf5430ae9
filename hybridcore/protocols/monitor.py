"""What a monitor of divergence reports."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar, Protocol, runtime_checkable

import attrs

from hybridcore.protocols.steps import StepRecord

__all__ = ["Monitor", "Signal", "SignalLevel"]


class SignalLevel(IntEnum):
    """How bad a signal is."""

    CAUTION = 1
    WARNING = 2
    CRITICAL = 3

    @property
    def word(self) -> str:
        """Lower-case name, as events and configurations write it."""
        return self.name.lower()


@attrs.frozen(slots=True)
class Signal:
    """What a monitor has found.

    Attributes:
        level: How bad it is.
        name: Registry name of the monitor.
        value: What was measured.
        limit: The limit of this level that `value` is beyond.
    """

    level: SignalLevel
    name: str
    value: float
    limit: float


@runtime_checkable
class Monitor(Protocol):
    """Watches real steps for one sign of divergence. `MonitorContract` tests every sentence here.

    ``Config`` keys live in ``[divergence.<name>]``. A class with ``every_step = True`` is checked after each
    real step, every other one after each ``divergence.check_every`` steps.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]

    def observe(self, record: StepRecord) -> None:
        """Take in one real step; a non-finite loss or gradient norm leaves no trace in any baseline."""
        ...

    def check(self, record: StepRecord) -> Signal | None:
        """The worst that was seen since the last check, or None.

        Args:
            record: The latest step, already observed.
        """
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...
