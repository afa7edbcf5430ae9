"""Performance profiles: how often an arm is within a factor of the best one, over many problems (F90)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hybridcore.report.axes import plain_log

__all__ = ["draw_profile", "performance_ratios", "share_within"]

Times = Mapping[str, Mapping[str, float]]
"""Time to the target by problem and arm; infinite where it was missed, absent where it was not run."""


def performance_ratios(times: Times, arms: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Each arm's times over the best time of the same problem, ascending.

    An arm that was not run on a problem, or missed its target, has an infinite ratio there. Problems on which
    no arm reached the target say nothing and are left out.

    Args:
        times: Times by problem and arm.
        arms: Arms to set against each other.

    Example:
        >>> times = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": math.inf, "y": 3.0}}
        >>> performance_ratios(times, ("x", "y"))
        {'x': (1.0, inf), 'y': (1.0, 2.0)}
    """
    ratios: dict[str, list[float]] = {arm: [] for arm in arms}
    for problem in times.values():
        found = {arm: problem.get(arm, math.inf) for arm in arms}
        best = min(found.values(), default=math.inf)
        if math.isfinite(best):
            for arm, time in found.items():
                ratios[arm].append(time / best if best > 0.0 else (1.0 if time == 0.0 else math.inf))
    return {arm: tuple(sorted(values)) for arm, values in ratios.items()}


def share_within(ratios: Sequence[float], factor: float) -> float:
    """Share of problems whose ratio is at most `factor`: the profile of Dolan and More (2002), eq. 2.2.

    Example:
        >>> share_within((1.0, 1.04, 3.0, math.inf), 1.05)
        0.5
    """
    return sum(ratio <= factor for ratio in ratios) / len(ratios) if ratios else math.nan


def draw_profile(axis: Any, ratios: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> None:
    """Draw the profiles on a matplotlib axis, one step line per arm, the ratio on a logarithmic axis.

    Args:
        axis: The axis.
        ratios: What `performance_ratios` gave.
        colours: Colour by arm; matplotlib's own for the others. Arms named here first lie on top.
    """
    finite = [ratio for values in ratios.values() for ratio in values if math.isfinite(ratio)]
    right = 1.15 * max(finite, default=2.0)
    for place, (arm, values) in enumerate(ratios.items()):
        if not values:
            continue
        reached = [ratio for ratio in values if math.isfinite(ratio)]
        xs = [1.0, *(ratio for ratio in dict.fromkeys(reached) if ratio > 1.0), right]
        axis.step(
            xs,
            [share_within(values, x) for x in xs],
            where="post",
            label=arm,
            color=colours.get(arm),
            linewidth=2.6 if place == 0 else 1.4,
            linestyle="-" if place == 0 else ("-", "--", "-.", ":")[place % 4],
            zorder=4 if place == 0 else 2,
        )
    axis.set(xlim=(1.0, right), ylim=(-0.02, 1.02))
    plain_log(axis, "x")
    axis.set(xlabel="cost to the target over the best arm's", ylabel="share of recipes")
    axis.grid(alpha=0.25, which="both")
    axis.spines[["top", "right"]].set_visible(False)
