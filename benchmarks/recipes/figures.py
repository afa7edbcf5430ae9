"""Figures of the round: speed-ups, speed-up against the learning rate, performance profiles, overhead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401 - the backend of savefig
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.recipes.plan import CONTROLS, OWN_RATE, PUBLISHED_RIVALS, RESHUFFLED
from benchmarks.recipes.rows import Row, times
from hybridcore.report.axes import plain_log
from hybridcore.report.overhead import draw_overhead, overheads
from hybridcore.report.profile import draw_profile, performance_ratios

__all__ = ["FIGURES", "draw_all", "overhead", "profiles", "rates", "speedups"]

FLOOR = 0.3
"""Where a missed target is drawn."""

COLOURS = {
    "hybrid": "#0b6fd1",
    "tuned": "#1b8a5a",
    "hybrid-tuned": "#7cc5a3",
    "baseline": "#222222",
    "fast-forward": "#d4a017",
    "schedule-free": "#b8402f",
    "lookahead": "#b07aa1",
    "ema": "#8c8c8c",
    "ema-nesterov": "#e08a5b",
    "nowcast": "#17becf",
    "prodigy": "#7d2018",
    "muon": "#9467bd",
    "lbfgs": "#5a5a9a",
    "lr-x10": "#f2a07b",
    "frozen": "#c0c0c0",
}


def speedups(rows: Sequence[Row]) -> Any:
    """Speed-up of the hybrid run, its best control and the tuned baseline on every recipe."""
    figure = Figure(figsize=(12, 1.6 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axis, kind, label in zip(panels, ("cost", "wall"), ("cost", "wall clock"), strict=True):
        for place, row in enumerate(reversed(rows)):
            gain = row.cost if kind == "cost" else row.wall
            hybrid = row.arm("hybrid")
            assert hybrid is not None
            interval = hybrid.speedup_cost_interval if kind == "cost" else hybrid.speedup_wall_interval
            control = row.best(CONTROLS)[0]
            marks = {
                "tuned baseline": (gain("tuned"), "D", "#1b8a5a", 6),
                "best control": (gain(control), "s", "#b8402f", 6),
                "hybrid": (gain("hybrid"), "o", "#0b6fd1", 9),
            }
            for name, (value, marker, colour, size) in marks.items():
                if math.isnan(value):
                    continue
                missed = value <= 0
                found = row.arm(control if name == "best control" else name.split()[0])
                if found is not None and found.unresolved and not missed:
                    axis.annotate("~", (value, place), xytext=(0, 5), textcoords="offset points", ha="center")
                axis.plot(
                    [max(value, FLOOR)],
                    [place],
                    marker=marker,
                    color=colour,
                    markersize=size,
                    markerfacecolor="none" if missed else colour,
                    linestyle="none",
                    zorder=4 if name == "hybrid" else 3,
                )
            if not math.isnan(interval[0]):
                axis.plot([max(v, FLOOR) for v in interval], [place, place], color="#0b6fd1", linewidth=2)
            again = row.arm(RESHUFFLED)
            chance = None if again is None else getattr(again, f"speedup_{kind}_interval")
            if chance is not None and not math.isnan(chance[0]):
                ends = [max(v, FLOOR) for v in chance]
                axis.plot(ends, [place, place], color="#d0d0d0", linewidth=9, solid_capstyle="butt", zorder=1)
        axis.axvline(1.0, color="#222222", linewidth=1)
        axis.axvline(5.0, color="#222222", linewidth=1, linestyle=":")
        axis.set(xlabel=f"times sooner to the baseline's final loss, {label}")
        highest = max([6.0, *(line.get_xdata()[-1] for line in axis.lines)])
        axis.set(xlim=(0.85 * FLOOR, 1.3 * highest), ylim=(-0.6, len(rows) - 0.4))
        plain_log(axis, "x", "x")
        axis.grid(alpha=0.25, axis="x", which="both")
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    looks = (("hybrid", "o", "#0b6fd1"), ("best control", "s", "#b8402f"), ("tuned baseline", "D", "#1b8a5a"))
    handles = [Line2D([], [], marker=m, color=c, linestyle="none", label=name) for name, m, c in looks]
    if any(row.arm(RESHUFFLED) is not None for row in rows):
        again = "baseline reshuffled, 95 % interval"
        handles.append(Line2D([], [], color="#d0d0d0", linewidth=9, label=again))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        "Published settings; hollow: missed; bars: 95 % intervals; dotted: 5x; ~: time drawn, not measured",
        fontsize=10,
    )
    return figure


def rates(rows: Sequence[Row]) -> Any:
    """Speed-up against the published learning rate over the tuned one."""
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axis = figure.subplots()
    found = sorted((row for row in rows if row.tuned is not None), key=lambda row: -row.tuned.factor)  # type: ignore[union-attr]
    looks = {
        "hybrid": ("o", "#0b6fd1"),
        "hybrid, read out": ("^", "#6fb1f2"),
        "baseline, read out": ("x", "#777777"),
    }
    for arm, (marker, colour) in looks.items():
        points = [(1 / row.tuned.factor, max(row.cost(arm), FLOOR)) for row in found if row.tuned]
        axis.plot(*zip(*points, strict=True), marker, color=colour, markersize=8, label=arm, alpha=0.9)
    groups: dict[float, list[Row]] = {}
    for row in found:
        groups.setdefault(1 / row.tuned.factor, []).append(row)  # type: ignore[union-attr]
    for ratio, own in groups.items():
        heights = _apart([max(row.cost("hybrid"), FLOOR) for row in own])
        for row, height in zip(own, heights, strict=True):
            axis.annotate(
                row.recipe.name,
                (ratio, height),
                xytext=(9, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
            )
    axis.axhline(1.0, color="#222222", linewidth=1)
    axis.axvline(1.0, color="#1b8a5a", linewidth=1, linestyle=":", label="the tuned rate itself")
    axis.set(xlabel="published learning rate / tuned learning rate")
    axis.set(ylabel="times sooner to the baseline's final loss, cost")
    low, high = min(groups), max(groups)
    axis.set_xlim(low / 1.5, max(high, 1.0) * (high / low) ** 0.3 * 1.5)
    axis.set_ylim(0.85 * FLOOR, 1.4 * max(6.0, *(max(line.get_ydata()) for line in axis.lines)))
    plain_log(axis, "x")
    plain_log(axis, "y", "x")
    axis.grid(alpha=0.25, which="both")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    axis.set_title(f"on the lower edge, at {FLOOR}: target missed", fontsize=10)
    return figure


def _apart(values: Sequence[float]) -> list[float]:
    """Heights of labels, moved up a logarithmic axis where they would lie on each other."""
    order, heights, below = sorted(range(len(values)), key=lambda i: values[i]), [0.0] * len(values), 0.0
    for index in order:
        below = heights[index] = max(values[index], 1.13 * below)
    return heights


def profiles(rows: Sequence[Row]) -> Any:
    """Performance profiles among arms with the published settings, and among all arms."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    sets = (
        ("arms that use the published settings", ("hybrid", "baseline", *PUBLISHED_RIVALS)),
        (
            "also tuned ones and other optimizers",
            ("hybrid", "baseline", "tuned", "hybrid-tuned", *OWN_RATE, "lr-x10"),
        ),
    )
    for axis, (title, arms) in zip(panels, sets, strict=True):
        found = [arm for arm in arms if any(row.arm(arm) is not None for row in rows)]
        draw_profile(axis, performance_ratios(times(rows, found), found), COLOURS)
        axis.set_title(title, fontsize=10)
        axis.legend(frameon=False, fontsize=8)
    panels[1].set_ylabel("")
    return figure


def overhead(rows: Sequence[Row]) -> Any:
    """Extra time and memory of the hybrid run on every recipe."""
    found = [
        attrs.evolve(entry, label=row.recipe.name)
        for row in rows
        for entry in overheads(row.comparison)
        if entry.label == "hybrid"
    ]
    figure = Figure(figsize=(12, 1.6 + 0.4 * len(found)), layout="constrained")
    draw_overhead(figure, found)
    return figure


FIGURES = {
    "speedups": (speedups, "Speed-up on each recipe"),
    "rates": (rates, "Speed-up against the learning rate over the tuned one"),
    "profiles": (profiles, "Performance profiles"),
    "overhead": (overhead, "Overhead and memory"),
}
"""File stem to what draws it and its title."""


def draw_all(rows: Sequence[Row], folder: Path) -> dict[str, Path]:
    """Write every figure that the rows allow as PNG.

    Returns:
        Title to file.
    """
    files, whole = {}, [row for row in rows if not row.part]
    for stem, (draw, title) in FIGURES.items():
        if stem == "rates" and all(row.tuned is None for row in rows):
            continue
        path = folder / f"{stem}.png"
        draw(rows if stem == "speedups" else whole).savefig(path, dpi=130)
        files[title] = path
    return files
