"""Records of runs without what differs between two runs that are otherwise the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridcore.peaks import PEAKS

__all__ = ["without_clock"]

_CLOCK = {
    "time",
    "elapsed",
    "seconds",
    "credit_seconds",
    "overhead_share",
    "average_seconds",
    "averaged_elapsed",
    "read_out_seconds",
    "read_out_elapsed",
    "dynamics_seconds",
    "config",
    *PEAKS,
}


def without_clock(record: Mapping[str, Any]) -> dict[str, Any]:
    """An event or a line of ``metrics.jsonl`` without times, peaks of memory and the configuration.

    What is left of a run that was interrupted and resumed is what the run has that was left alone (F53).

    Example:
        >>> without_clock({"event": "real-step", "loss": 0.5, "elapsed": 1.25})
        {'event': 'real-step', 'loss': 0.5}
    """
    return {key: value for key, value in record.items() if key not in _CLOCK}
