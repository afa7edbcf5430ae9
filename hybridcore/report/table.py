"""Tables for the terminal: the arms of a comparison, the outcome of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from hybridcore.compare import ArmRow, Comparison

__all__ = ["NOTE", "arm_cells", "arm_columns", "comparison_table", "summary_table"]

_ABSENT = "-"

NOTE = (
    "medians over seeds; speed-up: median (worst seed) [95 % bootstrap interval of the median, from three "
    "seeds on]; a missed target counts as infinite time; ~: the target lies before the first evaluation, so "
    "that the time to it is drawn, not measured"
)
"""How the table is to be read."""


def arm_columns() -> tuple[str, ...]:
    """Headings of the comparison's columns."""
    return (
        "arm",
        "seeds",
        "missed",
        "final loss",
        "gap",
        "backward passes",
        "predicted steps",
        "seconds to target",
        "cost to target",
        "speed-up, wall clock",
        "speed-up, cost",
        "bound",
    )


def arm_cells(row: ArmRow) -> tuple[str, ...]:
    """One arm's cells, in the order of `arm_columns`; a speed-up reads "median (worst) [interval]"."""
    drawn = "~" if row.unresolved else ""
    return (
        row.arm,
        str(row.runs),
        str(row.missed),
        number(row.final_loss),
        number(row.loss_gap, signed=True),
        number(row.backward_passes),
        number(row.predicted_steps),
        number(row.seconds_to_target),
        number(row.cost_to_target),
        drawn + _speedup(row.speedup_wall, row.speedup_wall_low, row.speedup_wall_interval),
        drawn + _speedup(row.speedup_cost, row.speedup_cost_low, row.speedup_cost_interval),
        number(row.speedup_bound),
    )


def comparison_table(comparison: Comparison) -> Table:
    """The arms of a comparison, one row each."""
    targets = ", ".join(f"{target:.4g}" for target in comparison.targets.values())
    table = Table(
        title=f"Time to the baseline's final validation loss ({targets or 'no finished baseline'})",
        caption=NOTE,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        box=None,
    )
    for position, heading in enumerate(arm_columns()):
        table.add_column(heading, justify="left" if position == 0 else "right")
    for row in comparison.rows:
        style = "bold" if row.arm in ("hybrid", "hybrid, averaged") else ""
        table.add_row(*(Text(cell, style) for cell in arm_cells(row)))
    return table


def summary_table(summary: Mapping[str, Any]) -> Table:
    """What one run did, in the order in which a reader asks."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in summary_lines(summary):
        table.add_row(Text(name, "dim"), value)
    return table


def summary_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of a summary's lines."""
    real, predicted = summary["real_steps"], summary["predicted_steps"]
    lines = [
        ("final validation loss", number(summary["final_loss"])),
        ("real steps / backward passes", f"{real} / {summary['backward_passes']}"),
        ("predicted steps", f"{number(predicted)} ({predicted / (real + predicted or 1):.0%} of all)"),
        ("jumps applied / refused", f"{summary['jumps']} / {summary['refused']}"),
        ("verdicts kept / failed", f"{summary['verdicts_kept']} / {summary['verdicts_failed']}"),
        ("credit", f"{number(summary['credit_steps'])} steps, {number(summary['credit_seconds'])} s"),
        ("overhead", f"{summary['overhead_share']:.2%}"),
        ("history memory", f"{summary['history_bytes'] / 2**20:.1f} MiB"),
        ("training time / cost", f"{number(summary['elapsed'])} s / {number(summary['cost'])} steps"),
    ]
    if summary.get("speedup") is not None:
        wall, cost = number(summary["speedup"]), number(summary["speedup_cost"])
        bound = number(summary["speedup_bound"])
        lines.append(("speed-up to target", f"{wall} wall clock, {cost} cost (bound {bound})"))
        lines.append(("loss gap to baseline", number(summary["loss_gap"], signed=True)))
    if summary.get("plugins_dropped"):
        lines.append(("plugins that failed", ", ".join(summary["plugins_dropped"])))
    if summary.get("interrupted"):
        lines.append(("interrupted", "yes; the numbers are what was measured so far"))
    return lines


def number(value: float | None, *, signed: bool = False) -> str:
    """A number in four significant digits; a dash where there is none."""
    if value is None or math.isnan(value):
        return _ABSENT
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:+.0f}" if signed and value else f"{value:.0f}"
    return f"{value:+.4g}" if signed else f"{value:.4g}"


def _speedup(middle: float, low: float, interval: tuple[float, float]) -> str:
    if math.isnan(middle):
        return _ABSENT
    if middle <= 0.0:
        return "missed"
    text = f"{middle:.2f} ({low:.2f})" if low > 0.0 else f"{middle:.2f} (missed)"
    return text if math.isnan(interval[0]) else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"
