"""Tables for the terminal: the arms of a comparison, the outcome of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from hybridcore.compare import ArmRow, Comparison
from hybridcore.report.overhead import Overhead

__all__ = [
    "NOTE",
    "OVERHEAD_NOTE",
    "arm_cells",
    "arm_columns",
    "comparison_table",
    "narrow_tables",
    "number",
    "overhead_cells",
    "overhead_columns",
    "overhead_table",
    "summary_lines",
    "summary_table",
    "target_line",
]

_ABSENT = "-"
_EFFORT = ("backward passes", "predicted steps", "seconds to target", "cost to target")

NOTE = (
    "medians over seeds; speed-up: median (worst seed) [95 % bootstrap interval of the median, from three "
    "seeds on]; a missed target counts as infinite time; ~: the target lies before the first evaluation, so "
    "that the time to it is drawn, not measured"
)
"""How the table is to be read."""


OVERHEAD_NOTE = (
    "medians over seeds; extra time: against the paired baseline with as many real steps; peak: the most "
    "memory of the process while the arm was trained, evaluation included"
)
"""How the table of overhead and memory is to be read."""


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


def target_line(comparison: Comparison) -> str:
    """Which validation loss the times and speed-ups of a comparison go to."""
    losses = ", ".join(dict.fromkeys(f"{target:.4g}" for target in comparison.targets.values()))
    if not losses:
        return "Time to the baseline's final validation loss: no finished baseline"
    if comparison.preset:
        return f"Time to a validation loss of {losses}, set in advance"
    return f"Time to the baseline's final validation loss ({losses})"


def comparison_table(comparison: Comparison) -> Table:
    """The arms of a comparison, one row each."""
    rows = [arm_cells(row) for row in comparison.rows]
    return _table(target_line(comparison), NOTE, arm_columns(), rows)


def narrow_tables(comparison: Comparison) -> tuple[Table, Table]:
    """The same in two tables below each other: what was reached, and what it took."""
    headings, rows = arm_columns(), [arm_cells(row) for row in comparison.rows]
    effort = {place for place, heading in enumerate(headings) if heading in _EFFORT}

    def part(title: str, note: str, places: Sequence[int]) -> Table:
        chosen = [[row[place] for place in places] for row in rows]
        return _table(title, note, [headings[place] for place in places], chosen)

    reached = [place for place in range(len(headings)) if place not in effort]
    return (
        part(target_line(comparison), NOTE, reached),
        part("What it took", "", [0, *sorted(effort)]),
    )


def _table(title: str, note: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without lines whose first column names arms; the hybrid ones are bold."""
    table = Table(
        title=title,
        caption=note or None,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        box=None,
    )
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position == 0 else "right", overflow="fold")
    for cells in rows:
        style = "bold" if cells[0] in ("hybrid", "hybrid, averaged") else ""
        unbroken = (cell.replace(", ", ",\N{NO-BREAK SPACE}") for cell in cells)
        table.add_row(*(Text(cell, style) for cell in unbroken))
    return table


def overhead_columns(found: Sequence[Overhead]) -> tuple[str, ...]:
    """Headings of what the engine costs; those of a device only where one was used."""
    headings = ["arm", "extra time", "of the run on trials", "history, MiB", "weights, MiB"]
    headings += ["peak resident, MiB", "above the baseline's"]
    if _on_device(found):
        headings += ["peak on the device, MiB", "above the baseline's"]
    return tuple(headings)


def overhead_cells(entry: Overhead, found: Sequence[Overhead]) -> tuple[str, ...]:
    """One arm's cells, in the order of `overhead_columns`."""
    extra = _ABSENT if math.isnan(entry.extra_time) else f"{entry.extra_time:+.1%}"
    cells = [entry.label, extra, f"{entry.trials:.1%}", number(entry.history), number(entry.weights)]
    cells += [number(entry.resident), number(entry.resident_extra, signed=True)]
    if _on_device(found):
        cells += [number(entry.device), number(entry.device_extra, signed=True)]
    return tuple(cells)


def _on_device(found: Sequence[Overhead]) -> bool:
    return any(not math.isnan(entry.device) for entry in found)


def overhead_table(found: Sequence[Overhead]) -> Table:
    """What the engine costs in time and memory, one row for each arm that ran it."""
    headings, rows = overhead_columns(found), [overhead_cells(entry, found) for entry in found]
    return _table("Overhead and memory", OVERHEAD_NOTE, headings, rows)


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
        *_read_out_lines(summary),
        ("real steps / backward passes", f"{real} / {summary['backward_passes']}"),
        ("predicted steps", f"{number(predicted)} ({predicted / (real + predicted or 1):.0%} of all)"),
        ("jumps applied / refused", f"{summary['jumps']} / {summary['refused']}"),
        ("verdicts kept / failed", f"{summary['verdicts_kept']} / {summary['verdicts_failed']}"),
        ("credit", f"{number(summary['credit_steps'])} steps, {number(summary['credit_seconds'])} s"),
        ("time on probes, failed trials, restores", f"{summary['overhead_share']:.2%}"),
        ("history memory", f"{summary['history_bytes'] / 2**20:.1f} MiB"),
        *_peak_lines(summary),
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


def _read_out_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    if summary.get("read_out_loss") is None:
        return []
    by = "the average of its weights" if summary["read_out"] == "average" else "its weights"
    return [("read out by", f"{by}, {number(summary['read_out_loss'])}")]


def _peak_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    resident, start = (summary.get(f"resident_{name}_bytes") for name in ("peak", "start"))
    if resident is not None and start is not None:
        above = f"{(resident - start) / 2**20:.1f} above what it began with"
        lines.append(("peak memory of the process", f"{resident / 2**20:.1f} MiB, {above}"))
    if summary.get("device_peak_bytes") is not None:
        lines.append(("peak memory on the device", f"{summary['device_peak_bytes'] / 2**20:.1f} MiB"))
    return lines


def number(value: float | None, *, signed: bool = False) -> str:
    """A number in four significant digits; a dash where there is none."""
    if value is None or math.isnan(value):
        return _ABSENT
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if abs(value) < 1e6 and (value == round(value) or abs(value) >= 1e4):
        return f"{value:+.0f}" if signed and value else f"{value:.0f}"
    return f"{value:+.4g}" if signed else f"{value:.4g}"


def _speedup(middle: float, low: float, interval: tuple[float, float]) -> str:
    if math.isnan(middle):
        return _ABSENT
    if middle <= 0.0:
        return "missed"
    text = f"{middle:.2f} ({low:.2f})" if low > 0.0 else f"{middle:.2f} (missed)"
    return text if math.isnan(interval[0]) else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"
