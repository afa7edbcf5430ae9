"""Tables of the round: prediction on the published settings, against tuned ones, and beside rivals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs

from benchmarks.recipes.data import data_of
from benchmarks.recipes.plan import CONTROLS, OWN_RATE, PUBLISHED_RIVALS, RESHUFFLED
from benchmarks.recipes.rows import Row, aims
from hybridcore.compare import ArmRow
from hybridcore.metrics import plain_json

__all__ = ["Table", "markdown", "plain", "tables"]


@attrs.frozen
class Table:
    """A table in words.

    Attributes:
        title: Its title.
        note: How to read it.
        head: Headings.
        cells: Rows.
    """

    title: str
    note: str
    head: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


def tables(rows: Sequence[Row]) -> list[Table]:
    """All tables of the round."""
    return [
        _aims(rows),
        _published(rows),
        _tuned(rows),
        _rivals(rows),
        _losses(rows),
        _recipes(rows),
    ]


def _aims(rows: Sequence[Row]) -> Table:
    cells = tuple((aim.text, aim.got, "yes" if aim.met else "no") for aim in aims(rows))
    return Table("Aims", "", ("aim", "reached", "met"), cells)


def _published(rows: Sequence[Row]) -> Table:
    head = ("recipe", "rate / tuned", "seeds", "final: baseline", "hybrid")
    head += (
        "cost: hybrid",
        "worst seed",
        "wall: hybrid",
        "worst seed",
        "cost: read out",
        "baseline read out",
        "reshuffled",
        "best control",
    )
    cells = []
    for row in rows:
        hybrid = row.arm("hybrid")
        assert hybrid is not None
        cells.append(
            (
                row.name,
                "-" if row.tuned is None else f"{1 / row.tuned.factor:.2g}",
                str(hybrid.runs),
                _loss(row, "baseline"),
                _loss(row, "hybrid"),
                _with_interval(hybrid, "cost"),
                _gain(hybrid.speedup_cost_low),
                _with_interval(hybrid, "wall"),
                _gain(hybrid.speedup_wall_low),
                _cost(row, "hybrid, read out"),
                _cost(row, "baseline, read out"),
                _with_interval(row.arm(RESHUFFLED), "cost"),
                _best(row, CONTROLS),
            )
        )
    note = (
        "How many times sooner the hybrid run, with the engine's defaults on the published settings, reaches "
        "the target: median over seeds [95 % bootstrap interval]. The target is the same seed's baseline's "
        "own final validation loss, and a miss counts as infinite time. Cost counts a real step as 1, a "
        "forward pass as a third. rate / tuned: the published learning rate over the tuned one. read out: "
        "by the weights or their running mean, as held-out examples decide, for the hybrid and, as its "
        "control, for the baseline. "
        "reshuffled: the published loop once more, from the same initial weights, its examples in another "
        "order: what a time to the target owes to chance. "
        "Controls: random jumps, no jumps in the same duty cycle, 4 and 10 times the rate. ~: in some seed "
        "the target lies before the first evaluation, so that the time to it is drawn, not measured."
    )
    return Table("Published settings", note, head, tuple(cells))


def _tuned(rows: Sequence[Row]) -> Table:
    head = ("recipe", "tuned settings", "final: tuned", "hybrid on published", "hybrid on tuned")
    head += ("cost: tuned", "hybrid on published", "hybrid over tuned", "hybrid on tuned", "to tuned's loss")
    cells = []
    for row in rows:
        if row.tuned is None or row.arm("tuned") is None:
            continue
        rate = row.recipe.learning_rate * row.tuned.factor
        cells.append(
            (
                row.name,
                f"{rate:.3g} {row.tuned.schedule}",
                _loss(row, "tuned"),
                _loss(row, "hybrid"),
                _loss(row, "hybrid-tuned"),
                _cost(row, "tuned"),
                _cost(row, "hybrid"),
                _ratio(row.against_tuned),
                _cost(row, "hybrid-tuned"),
                _gain(row.to_tuned_cost),
            )
        )
    note = (
        "Speed-ups in cost to the published baseline's final loss. Tuned: the same optimizer at the best of "
        "the rates on a ladder of about 3, the best one not at its edge, with the published schedule or a "
        "cosine decay, chosen by the final validation loss on a seed of its own. hybrid over tuned: cost of "
        "the hybrid run on the published settings over the tuned baseline's, to the published target. To "
        "tuned's loss: the hybrid run on the published settings to the tuned baseline's final loss."
    )
    return Table("Tuned settings", note, head, tuple(cells))


def _rivals(rows: Sequence[Row]) -> Table:
    named = ("hybrid", *PUBLISHED_RIVALS, *OWN_RATE, "gauss-newton", RESHUFFLED, *CONTROLS)
    arms = [arm for arm in named if any(row.arm(arm) is not None for row in rows)]
    cells = tuple((row.name, *(_cost(row, arm) for arm in arms)) for row in rows)
    note = (
        "Speed-up in cost to the target, every arm in the same run. Up to nowcast, this project's learned "
        "predictor, arms use the published optimizer and its settings (Schedule-Free its own version of it); "
        "Prodigy, Muon and L-BFGS are other optimizers. gauss-newton: this project's predictor for losses "
        "that are squares."
    )
    return Table("Beside rivals and controls", note, ("recipe", *arms), cells)


def _losses(rows: Sequence[Row]) -> Table:
    named = ("baseline", "hybrid", "tuned", "hybrid-tuned", *PUBLISHED_RIVALS, *OWN_RATE, "gauss-newton")
    named += (RESHUFFLED, *CONTROLS)
    arms = [arm for arm in named if any(row.arm(arm) is not None for row in rows)]
    cells = tuple((row.name, *(_loss(row, arm) for arm in arms)) for row in rows)
    return Table("Final validation losses", "Medians over seeds.", ("recipe", *arms), cells)


def _recipes(rows: Sequence[Row]) -> Table:
    head = ("recipe", "published", "here", "data", "steps", "device", "source")
    cells = tuple(
        (
            row.recipe.name,
            row.recipe.published,
            row.recipe.replaced or "-",
            data_of(row.recipe, row.plan.data),
            f"{row.plan.steps(row.recipe)}"
            + ("" if row.plan.scale == 1.0 else f" (published x {row.plan.scale:g})"),
            row.plan.device,
            row.recipe.source,
        )
        for row in rows
        if not row.part
    )
    return Table("Recipes", "", head, cells)


def markdown(rows: Sequence[Row], origin: str) -> str:
    """All tables as Markdown."""
    parts = [origin]
    for table in tables(rows):
        lines = [f"**{table.title}.** {table.note}".rstrip(), "", _line(table.head)]
        lines.append("|" + "---|" * len(table.head))
        parts.append("\n".join([*lines, *(_line(cells) for cells in table.cells)]))
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plain(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything as plain data."""
    data: dict[str, Any] = plain_json(
        {
            "aims": [attrs.asdict(aim) for aim in aims(rows)],
            "recipes": [
                {
                    **attrs.asdict(row.recipe),
                    "part": row.part,
                    **row.plan.kept(),
                    "data_used": data_of(row.recipe, row.plan.data),
                    "steps_run": row.plan.steps(row.recipe),
                    "tuned": None if row.tuned is None else attrs.asdict(row.tuned),
                    "to_tuned_cost": row.to_tuned_cost,
                    "to_tuned_wall": row.to_tuned_wall,
                    "hybrid_over_tuned_cost": row.against_tuned,
                    "overhead": row.overhead,
                    "targets": row.comparison.targets,
                    "arms": [attrs.asdict(arm) for arm in row.comparison.rows],
                }
                for row in rows
            ],
        }
    )
    return data


def _loss(row: Row, arm: str) -> str:
    found = row.arm(arm)
    if found is None:
        return "-"
    value = found.final_loss
    if not math.isfinite(value):
        return "diverged"
    return f"{value:.4f}" if 0.01 <= abs(value) < 1e4 or value == 0.0 else f"{value:.2g}"


def _gain(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "missed" if value <= 0 else f"{value:.2f}x" if value < 99.5 else f"{value:.0f}x"


def _cost(row: Row, arm: str) -> str:
    """An arm's speed-up in cost."""
    return _drawn(row.arm(arm)) + _gain(row.cost(arm))


def _drawn(row: ArmRow | None) -> str:
    """The mark of a time that is drawn from the start to the first evaluation, not measured."""
    return "~" if row is not None and row.unresolved and row.speedup_cost > 0 else ""


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else "missed" if math.isinf(value) else f"{value:.2f}"


def _with_interval(row: ArmRow | None, kind: str) -> str:
    if row is None:
        return "-"
    value = row.speedup_cost if kind == "cost" else row.speedup_wall
    low, high = row.speedup_cost_interval if kind == "cost" else row.speedup_wall_interval
    gain = _drawn(row) + _gain(value)
    return gain if math.isnan(low) else f"{gain} [{low:.2f}, {high:.2f}]"


def _best(row: Row, arms: Sequence[str]) -> str:
    name, gain = row.best(arms)
    return f"{_drawn(row.arm(name))}{_gain(gain)} {name}" if name != "-" else "-"
