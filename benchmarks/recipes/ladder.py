"""The ladder of learning rates that tuning climbs, and which rung comes next."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["beyond", "lowest", "next_candidates", "times"]


def next_candidates(losses: dict[tuple[str, float], float], schedule: str) -> list[tuple[str, float]]:
    """Further candidates: beyond an edge that is best, then the other schedule.

    Args:
        losses: Final validation losses by schedule and factor on the published rate.
        schedule: The published schedule.
    """
    own = {f: loss for (s, f), loss in losses.items() if s == schedule}
    step = beyond(own)
    if step is not None:
        return [(schedule, step)]
    if schedule != "constant":
        return []
    cosine = {f: loss for (s, f), loss in losses.items() if s == "cosine"}
    best = lowest(own)
    if not cosine:
        return [("cosine", best), ("cosine", times(best, 1))]
    step = beyond(cosine)
    return [("cosine", step)] if step is not None and step > best else []


def lowest(losses: dict[Any, float]) -> Any:
    """The key of the lowest loss; one that is not finite counts as infinite."""
    return min(losses, key=lambda key: losses[key] if math.isfinite(losses[key]) else math.inf)


def beyond(losses: dict[float, float]) -> float | None:
    """The factor next to the best one, where that lies at the edge of those tried."""
    best = lowest(losses)
    if best == max(losses):
        return times(best, 1)
    return times(best, -1) if best == min(losses) else None


def times(factor: float, places: int) -> float:
    """Neighbours on the ladder ... 0.3, 1, 3, 10, 30 ..."""
    rung = round(2 * math.log10(factor)) + places
    return float(f"{(1.0 if rung % 2 == 0 else 3.0) * 10.0 ** (rung // 2):.6g}")
