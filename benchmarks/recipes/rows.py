"""What the runs of all recipes say: one row each, and how far the aims are met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import attrs

from benchmarks.recipes.catalogue import Recipe
from benchmarks.recipes.plan import PUBLISHED_RIVALS, RESHUFFLED, Plan, Tuned
from hybridcore.compare import ArmRow, Comparison, read_comparison, summarise
from hybridcore.records import RunRecord, median_speedup, speedup
from hybridcore.report.overhead import overheads
from hybridcore.report.profile import performance_ratios, share_within

__all__ = ["Aim", "Row", "aims", "read_row", "read_rows", "times"]

WITHIN = 1.05
READ_OUT_ARM = "hybrid, read out"


@attrs.frozen
class Row:
    """A recipe's outcome.

    Attributes:
        recipe: The recipe.
        comparison: All its finished runs; the target of each seed is its baseline's final validation loss.
        tuned: The best settings; None where nothing was tuned.
        plan: Length and device of the runs.
        to_tuned_cost: Median speed-up in cost of the hybrid run to the tuned baseline's final loss; 0 where
            it is missed, NaN where it was not run.
        to_tuned_wall: The same in seconds.
        part: What of the recipe it is, where that is not the whole: what came before L-BFGS.
    """

    recipe: Recipe
    comparison: Comparison
    tuned: Tuned | None
    plan: Plan
    to_tuned_cost: float
    to_tuned_wall: float
    part: str = ""

    @property
    def name(self) -> str:
        """Name of the recipe and of the part of it that this is."""
        return self.recipe.name + (f", {self.part}" if self.part else "")

    def arm(self, name: str) -> ArmRow | None:
        """The outcome of an arm; None where it was not run."""
        return next((row for row in self.comparison.rows if row.arm == name), None)

    def cost(self, name: str) -> float:
        """Median speed-up in cost; 0 where the target is missed, NaN where it was not run."""
        row = self.arm(name)
        return math.nan if row is None else row.speedup_cost

    def wall(self, name: str) -> float:
        """The same in seconds."""
        row = self.arm(name)
        return math.nan if row is None else row.speedup_wall

    def best(self, names: Sequence[str]) -> tuple[str, float]:
        """The arm of these with the largest speed-up in cost."""
        found = {name: gain for name in names if not math.isnan(gain := self.cost(name))}
        best = max(found, key=lambda name: found[name], default="-")
        return best, found.get(best, math.nan)

    @property
    def against_tuned(self) -> float:
        """Cost of the hybrid run to the published target over the tuned baseline's; NaN without."""
        return self.over_tuned("hybrid")

    def over_tuned(self, arm: str) -> float:
        """Cost of an arm to the published target over the tuned baseline's; NaN without."""
        hybrid, tuned = self.cost(arm), self.cost("tuned")
        if math.isnan(hybrid) or math.isnan(tuned):
            return math.nan
        return tuned / hybrid if hybrid > 0 else math.inf

    @property
    def overhead(self) -> float:
        """Share by which the hybrid run's real steps take longer than the baseline's; median over seeds."""
        found = [entry for entry in overheads(self.comparison) if entry.label == "hybrid"]
        return found[0].extra_time if found else math.nan


def read_row(recipe: Recipe, plan: Plan, folder: Path) -> Row | None:
    """The row of a recipe's folder; None where no baseline, or nothing beside it, is finished."""
    if next(folder.glob("*/seed-*/summary.json"), None) is None:
        return None
    return _row(recipe, plan, folder, read_comparison(folder))


def read_rows(recipe: Recipe, plan: Plan, folder: Path) -> list[Row]:
    """The row of a recipe's folder and, where L-BFGS came last, that of what was before it."""
    whole = read_row(recipe, plan, folder)
    if whole is None or not recipe.iterations:
        return [] if whole is None else [whole]
    steps = whole.plan.steps(recipe)
    records = [
        attrs.evolve(record, evaluations=tuple(e for e in record.evaluations if e.step <= steps))
        for record in whole.comparison.records
    ]
    before = _row(recipe, plan, folder, summarise(records, folder))
    return [whole] if before is None else [whole, attrs.evolve(before, part="before L-BFGS")]


def _row(recipe: Recipe, plan: Plan, folder: Path, result: Comparison) -> Row | None:
    finished = {row.arm for row in result.rows}
    if not {"baseline", "hybrid"} <= finished:
        return None
    tuned = {r.seed: r for r in result.records if r.arm == "tuned"}
    gains = [
        gain
        for record in result.records
        if record.arm == "hybrid" and (gain := _to(record, tuned.get(record.seed))) is not None
    ]
    return Row(
        recipe,
        result,
        plan.tuned(folder),
        plan.found(folder),
        median_speedup([cost for cost, _ in gains]),
        median_speedup([wall for _, wall in gains]),
    )


def _to(record: RunRecord, other: RunRecord | None) -> tuple[float, float] | None:
    gain = speedup(record.evaluations, other.evaluations if other is not None else None)
    return None if gain is None else (gain.cost, gain.wall)


def times(rows: Sequence[Row], arms: Sequence[str]) -> dict[str, dict[str, float]]:
    """Cost to the target over the baseline's, by recipe and arm; infinite where it is missed."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        gains = {arm: row.cost(arm) for arm in arms}
        found[row.recipe.name] = {
            arm: 1.0 / gain if gain > 0 else math.inf for arm, gain in gains.items() if not math.isnan(gain)
        }
    return found


@attrs.frozen
class Aim:
    """An aim and what was reached.

    Attributes:
        text: The aim.
        got: What was reached, in words.
        met: Whether it is met.
    """

    text: str
    got: str
    met: bool


def aims(rows: Sequence[Row]) -> list[Aim]:
    """How far the aims are met by the rows that are there; a part of a recipe does not count."""
    rows = [row for row in rows if not row.part]
    count = len(rows)
    fast = [row.recipe.name for row in rows if row.cost("hybrid") >= 5.0]
    fast_wall = [row.recipe.name for row in rows if row.wall("hybrid") >= 5.0]
    fast_read = [row.recipe.name for row in rows if row.cost(READ_OUT_ARM) >= 5.0]
    slow = [row.recipe.name for row in rows if not _not_slower(row)]
    slow_wall = [row.recipe.name for row in rows if not row.wall("hybrid") >= 0.98]
    read = [row for row in rows if row.arm(READ_OUT_ARM) is not None]
    slow_read = [row.recipe.name for row in read if not _not_slower(row, READ_OUT_ARM)]
    again = [row for row in rows if row.arm(RESHUFFLED) is not None]
    slow_again = [row.recipe.name for row in again if not _not_slower(row, RESHUFFLED)]
    held = f"{len(again) - len(slow_again)} of {len(again)}{_but(slow_again)}"
    chance = f"; by the baseline itself, reshuffled, on {held}" if again else ""
    shares = _shares(rows, "hybrid")
    others = [share for arm, share in shares.items() if arm != "hybrid"]
    shares[READ_OUT_ARM] = _shares(rows, READ_OUT_ARM)[READ_OUT_ARM]
    tuned = [row for row in rows if not math.isnan(row.against_tuned)]
    near = [row for row in tuned if row.against_tuned <= 1.1]
    near_read = [row for row in tuned if row.over_tuned(READ_OUT_ARM) <= 1.1]
    return [
        Aim(
            "at least 5 times sooner on at least three recipes as published",
            f"in cost on {len(fast)} of {count} ({', '.join(fast) or 'none'}), "
            f"in wall clock on {len(fast_wall)} ({', '.join(fast_wall) or 'none'}), "
            f"read out, in cost on {len(fast_read)} ({', '.join(fast_read) or 'none'})",
            len(fast) >= 3,
        ),
        Aim(
            "on no recipe later than the baseline (0.98 at the lower bound)",
            f"in cost held on {count - len(slow)} of {count}{_but(slow)}; "
            f"medians in wall clock on {count - len(slow_wall)}{_but(slow_wall)}; "
            f"read out, in cost on {len(read) - len(slow_read)} of {len(read)}{_but(slow_read)}" + chance,
            not slow,
        ),
        Aim(
            f"most often within {WITHIN} of the best arm that uses the published settings",
            ", ".join(
                f"{arm} {share:.0%}"
                for arm, share in sorted(shares.items(), key=lambda item: -item[1])
                if not math.isnan(share)
            ),
            bool(rows) and shares["hybrid"] > max(others),
        ),
        Aim(
            "within 1.1 times the tuned baseline's cost to the published target on at least 8 of 10",
            f"{len(near)} of {len(tuned)}; read out {len(near_read)}",
            bool(tuned) and len(near) >= 0.8 * len(tuned),
        ),
    ]


def _but(names: Sequence[str]) -> str:
    return f", not on {', '.join(names)}" if names else ""


def _shares(rows: Sequence[Row], hybrid: str) -> dict[str, float]:
    """Share of the recipes on which an arm with the published settings is within `WITHIN` of the best one.

    Args:
        rows: The recipes.
        hybrid: The hybrid run by its weights, or by what it is read out by.
    """
    named = ("baseline", hybrid, *PUBLISHED_RIVALS)
    arms = [arm for arm in named if arm == hybrid or any(row.arm(arm) is not None for row in rows)]
    ratios = performance_ratios(times(rows, arms), arms)
    return {arm: share_within(values, WITHIN) for arm, values in ratios.items()}


def _not_slower(row: Row, arm: str = "hybrid") -> bool:
    """The lower bound of the interval, or the worst seed where there are too few for one."""
    hybrid = row.arm(arm)
    if hybrid is None:
        return False
    low = hybrid.speedup_cost_interval[0]
    return (hybrid.speedup_cost_low if math.isnan(low) else low) >= 0.98
