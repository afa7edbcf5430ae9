"""The figure of a comparison: validation loss against wall clock and against cost, for all arms (F90)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridcore.compare import ArmRow, Comparison
from hybridcore.errors import PluginError
from hybridcore.records import RunRecord
from hybridcore.report.axes import plain_log
from hybridcore.report.phases import phase_spans

__all__ = ["draw", "matplotlib_figure", "save_figure"]

_COLOURS = {
    "baseline": "#222222",
    "baseline, averaged": "#777777",
    "hybrid": "#0b6fd1",
    "hybrid, averaged": "#6fb1f2",
    "reshuffled": "#8c564b",
    "none": "#9a9a9a",
    "frozen": "#b07aa1",
    "random": "#d4a017",
    "tuned": "#1b8a5a",
    "tuned, averaged": "#7cc5a3",
}
_MAIN = ("baseline", "hybrid", "tuned")
_AVERAGED = tuple(f"{arm}, averaged" for arm in _MAIN)
_RATES = ("#f2a07b", "#e06c4f", "#b8402f", "#7d2018")
_OTHERS = ("#7b5cb8", "#c2588e", "#2aa5a0", "#8a6d3b", "#5d7f3f", "#4a6fa5", "#a04545", "#6b6b6b")
_SHADES = {"warmup": "#555555", "predict": "#0b6fd1", "correct": "#1b8a5a"}
_LEGEND_COLUMNS = 7
_MARKS = (("jumps", "#0b6fd1"), ("kept", "#1b8a5a"), ("failed", "#c62828"))


def save_figure(comparison: Comparison, path: str | Path) -> Path:
    """Draw the comparison and write it as PNG.

    Args:
        comparison: The runs.
        path: The file; its folder is made if missing.

    Raises:
        PluginError: matplotlib is not installed.
    """
    figure = draw(comparison)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    return file


def draw(comparison: Comparison) -> Any:
    """The comparison as a matplotlib figure, independent of pyplot's state.

    Left against training seconds, right against cost; the lowest seed thick, the other seeds of
    baseline, hybrid and tuned thin. The phases of the hybrid run of the lowest seed are shaded; below each
    panel stand its events.

    Raises:
        PluginError: matplotlib is not installed.
    """
    figure_class = matplotlib_figure()
    figure = figure_class(figsize=(12, 5.8), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col", height_ratios=[6, 1])
    colours = _assign_colours([row.arm for row in comparison.rows] or [r.arm for r in comparison.records])
    panels = (("elapsed", "training time (s), evaluation excluded"), ("cost", "cost (real-step equivalents)"))
    for column, (axis_key, label) in enumerate(panels):
        top, bottom = grid[0][column], grid[1][column]
        ends = _curves(top, comparison, axis_key, colours)
        _phases(top, comparison, axis_key)
        _cut(top, ends)
        _events(bottom, comparison, axis_key)
        bottom.set_xlabel(label)
    grid[0][0].set_ylabel("validation loss")
    handles, labels = grid[0][0].get_legend_handles_labels()
    columns = math.ceil(len(labels) / math.ceil(len(labels) / _LEGEND_COLUMNS)) if labels else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(_title(comparison), fontsize=11)
    return figure


def matplotlib_figure() -> Any:
    """The class of matplotlib's figures, with a backend that needs no display.

    Raises:
        PluginError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401 - the backend of savefig
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PluginError(
            "figures need matplotlib, which is not installed",
            where="hybridcore.report.figure",
            got=str(error),
            fix="pip install 'hybridcore[report]'",
        ) from error
    return Figure


def _assign_colours(arms: Sequence[str]) -> dict[str, str]:
    rates = [arm for arm in dict.fromkeys(arms) if arm.startswith("lr-x")]
    others = [arm for arm in dict.fromkeys(arms) if arm not in _COLOURS and arm not in rates]
    colours = {arm: _RATES[place % len(_RATES)] for place, arm in enumerate(rates)}
    colours |= {arm: _OTHERS[place % len(_OTHERS)] for place, arm in enumerate(others)}
    return {arm: colours.get(arm, _COLOURS.get(arm, "#555555")) for arm in arms}


def _curves(axis: Any, comparison: Comparison, key: str, colours: dict[str, str]) -> dict[str, float]:
    """Draw the curves; where the longest one of each arm ends."""
    ends: dict[str, float] = {}
    losses = []
    rows = {row.arm for row in comparison.rows}
    averaged = [record.averaged for record in comparison.records]
    drawn = [*comparison.records, *(r for r in averaged if r is not None and r.arm in rows)]
    for record in drawn:
        points = [(getattr(e, key), e.loss) for e in record.evaluations if math.isfinite(e.loss)]
        if not points:
            continue
        first = record.arm not in ends
        main = record.arm in _MAIN
        if not (first or main):
            continue  # controls once: their other seeds are in the table
        ends[record.arm] = max(ends.get(record.arm, 0.0), points[-1][0])
        losses += [loss for _, loss in points]
        axis.plot(
            *zip(*points, strict=True),
            color=colours.get(record.arm, "#555555"),
            linewidth=(2.2 if main else 1.3) if first else 0.8,
            alpha=1.0 if first else 0.45,
            linestyle="-" if main else "-." if record.arm in _AVERAGED else "--",
            zorder=3 if record.arm == "hybrid" else 2,
            label=record.arm if first else None,
        )
    if comparison.targets:
        seed, target = min(comparison.targets.items())
        label = f"target {target:.4g} (seed {seed})"
        axis.axhline(target, color="#222222", linewidth=1, linestyle=":", label=label)
    if losses and min(losses) > 0:
        _limit(axis, losses, comparison)
    axis.grid(alpha=0.25, which="both")
    axis.spines[["top", "right"]].set_visible(False)
    return ends


def _cut(axis: Any, ends: dict[str, float]) -> None:
    """Arms that take far longer than baseline, hybrid and tuned do not squeeze these to the left."""
    main = max((end for arm, end in ends.items() if arm in _MAIN), default=0.0)
    if main > 0.0 and max(ends.values()) > 1.5 * main:
        axis.set_xlim(-0.05 * main, 1.5 * main)


def _limit(axis: Any, losses: list[float], comparison: Comparison) -> None:
    """Logarithmic where the range asks for it; arms that blow up do not squeeze the others flat."""
    starts = [r.evaluations[0].loss for r in comparison.records if r.evaluations]
    highest = min(max(losses), 2.0 * max(s for s in starts if math.isfinite(s)))
    if highest / min(losses) > 5.0:
        axis.set_ylim(0.9 * min(losses), 1.1 * highest)
        plain_log(axis, "y")
    else:
        margin = 0.05 * (highest - min(losses)) or 0.05 * highest
        axis.set_ylim(min(losses) - margin, highest + margin)


def _phases(axis: Any, comparison: Comparison, key: str) -> None:
    """Shade the phases of the hybrid run whose events are drawn below; Full stays white."""
    record = next((r for r in comparison.records if r.arm == "hybrid"), None)
    for phase, spans in (phase_spans(record) if record is not None else {}).items():
        if record is None or phase not in _SHADES:
            continue
        begins, ends = (_places(record, [span[i] for span in spans], key) for i in (0, 1))
        axis.broken_barh(
            [(begin, end - begin) for begin, end in zip(begins, ends, strict=True)],
            (0.0, 1.0),
            transform=axis.get_xaxis_transform(),
            color=_SHADES[phase],
            linewidth=0.0,
            alpha=0.16,
            zorder=0,
            label=f"phase {phase}",
        )


def _events(axis: Any, comparison: Comparison, key: str) -> None:
    """Jumps, kept and failed verdicts of one hybrid run, on three lines.

    A trial that was kept because the loss stayed under the guard, without a judgement at equal cost, has a
    short and pale mark.
    """
    record = next((r for r in comparison.records if r.arm == "hybrid"), None)
    axis.set_yticks(range(3), [name for name, _ in reversed(_MARKS)], fontsize=8)
    axis.set_ylim(-0.6, 2.6)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    if record is None:
        return
    kept, failed = ([v for v in record.verdicts if bool(v["kept"]) is held] for held in (True, False))
    guarded = [v for v in kept if v.get("gain") is None]
    judged = [v for v in kept if v.get("gain") is not None]
    words = {"jumps": str(len(record.jumps)), "kept": str(len(kept)), "failed": str(len(failed))}
    if guarded:
        words["kept"] += f", {len(judged)} judged"
    for line, (name, colour) in zip((2, 1, 0), _MARKS, strict=True):
        for events, height, alpha in {
            "jumps": ((record.jumps, 0.4, 1.0),),
            "kept": ((guarded, 0.2, 0.5), (judged, 0.4, 1.0)),
            "failed": ((failed, 0.4, 1.0),),
        }[name]:
            places = _places(record, [e["step"] for e in events], key)
            axis.vlines(places, line - height, line + height, color=colour, linewidth=1.1, alpha=alpha)
        axis.annotate(
            words[name],
            (1.0, line),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
        )


def _places(record: RunRecord, steps: Sequence[float], key: str) -> list[float]:
    """Where real steps lie on an axis, between the evaluations around them."""
    known = [e.step for e in record.evaluations]
    values = [getattr(e, key) for e in record.evaluations]
    return [float(x) for x in np.interp(steps, known, values)] if known and steps else []


def _title(comparison: Comparison) -> str:
    start = comparison.records[0].start if comparison.records else {}
    seeds = len({record.seed for record in comparison.records})
    parts = [str(start.get("task", "")), str(start.get("framework", "")), f"{seeds} seed{'s' * (seeds != 1)}"]
    hybrid = next((row for row in comparison.rows if row.arm == "hybrid"), None)
    if hybrid is not None and not math.isnan(hybrid.speedup_wall):
        drawn = _drawn(hybrid)
        parts.append(
            f"hybrid to target: {drawn}{hybrid.speedup_wall:.2f}x in time, "
            f"{drawn}{hybrid.speedup_cost:.2f}x in cost"
            if hybrid.speedup_cost > 0
            else "hybrid misses the target"
        )
    own = ("baseline", "reshuffled", "hybrid", "hybrid, averaged")
    controls = [row for row in comparison.rows if row.arm not in own]
    best = max(controls, key=lambda row: row.speedup_wall, default=None)
    if best is not None and best.speedup_wall > 0:
        drawn = _drawn(best)
        gain = f"{drawn}{best.speedup_wall:.2f}x, {drawn}{best.speedup_cost:.2f}x"
        parts.append(f"best control {best.arm}: {gain}")
    lowest = min((record.seed for record in comparison.records), default=0)
    note = f"shades (white: phase full) and event rows: hybrid run of seed {lowest}"
    if hybrid is None:
        note = ""
    if seeds > 1:
        notes = (f"thick: seed {lowest}, thin: other seeds", note, "speed-ups: medians over seeds")
        note = "; ".join(part for part in notes if part)
    return " · ".join(part for part in parts if part) + "\n" + note


def _drawn(row: ArmRow) -> str:
    """The mark of a time that is a line drawn from the start, not a measurement."""
    return "~" if row.unresolved else ""
