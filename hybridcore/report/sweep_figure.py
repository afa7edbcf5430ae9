"""The figure of a sweep: final loss and speed-up against a setting, the baseline beside them (F76, F90)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import attrs

from hybridcore.report.axes import plain_log
from hybridcore.report.figure import matplotlib_figure
from hybridcore.sweep_results import Sweep, SweepRun, standard_error

__all__ = ["Series", "draw_sweep", "save_sweep_figure", "series_of", "swept_key"]

_COLOURS = ("#0b6fd1", "#d4a017", "#1b8a5a", "#b8402f", "#7b5cb8", "#2aa5a0", "#c2588e", "#8a6d3b")
_BASE = "#222222"
_MOST_TICKS = 12
_DECADE = 10.0


@attrs.frozen
class Series:
    """Runs that differ in one setting and in their seed.

    Attributes:
        label: The settings that they have in common, in words.
        groups: The runs by the value of the setting, in the order of the axis.
    """

    label: str
    groups: Mapping[Any, tuple[SweepRun, ...]]


def swept_key(runs: Sequence[SweepRun]) -> str:
    """The setting that the axis shows: of those with numbers, or else of all, the one with most values.

    Example:
        >>> made = [SweepRun({"a": a, "b": b}, 0, "", 1.0, 1.0, 1.0, {}) for a in "xyz" for b in (1, 2)]
        >>> swept_key(made)
        'b'
    """
    values: dict[str, set[str]] = {}
    numeric: dict[str, bool] = {}
    for run in runs:
        for key, value in run.settings.items():
            values.setdefault(key, set()).add(str(value))
            numeric[key] = numeric.get(key, True) and _is_number(value)
    return max(values, key=lambda key: (numeric[key] and len(values[key]) > 1, len(values[key])))


def series_of(runs: Sequence[SweepRun], key: str) -> list[Series]:
    """One series for each combination of the other settings."""
    found: dict[str, dict[Any, list[SweepRun]]] = {}
    for run in runs:
        others = (f"{k.rpartition('.')[2]} {_word(v)}" for k, v in run.settings.items() if k != key)
        value = run.settings.get(key)
        found.setdefault(", ".join(others), {}).setdefault(
            value if _is_number(value) else str(value), []
        ).append(run)
    whole = []
    for label, groups in found.items():
        numbers = all(map(_is_number, groups))
        ordered = sorted(groups) if numbers else list(groups)
        whole.append(Series(label, {value: tuple(groups[value]) for value in ordered}))
    return whole


def save_sweep_figure(result: Sweep, path: str | Path) -> Path:
    """Draw the sweep and write it as PNG.

    Raises:
        PluginError: matplotlib is not installed.
    """
    figure, file = draw_sweep(result), Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    return file


def draw_sweep(result: Sweep) -> Any:
    """The sweep as a matplotlib figure: final validation loss, and with baselines the speed-ups.

    Points are means over the seeds with their standard error, for speed-ups medians; single seeds are small
    dots. A setting whose values span more than a decade has a logarithmic axis.

    Raises:
        PluginError: matplotlib is not installed.
    """
    gains = any(not math.isnan(run.speedup_cost) for run in result.runs)
    figure = matplotlib_figure()(figsize=(11 if gains else 7, 4.6), layout="constrained")
    panels = figure.subplots(1, 2 if gains else 1, squeeze=False)[0]
    if not result.runs:
        panels[0].set_axis_off()
        figure.suptitle(_title(result, ""), fontsize=11)
        return figure
    key = swept_key(result.runs)
    axis_of = _Places([run.settings.get(key) for run in result.runs])
    lines = series_of(result.runs, key)
    _losses(panels[0], result, lines, key, axis_of)
    if gains:
        _gains(panels[1], lines, axis_of)
    for axis in panels:
        axis_of.dress(axis)
        axis.set_xlabel(key)
        axis.grid(alpha=0.25, which="both")
        axis.spines[["top", "right"]].set_visible(False)
        count = len(axis.get_legend_handles_labels()[1])
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "borderaxespad": 0.0}
        axis.legend(frameon=False, fontsize=8, ncols=min(count, 3) if count < 4 else 2, **below)
    figure.suptitle(_title(result, key), fontsize=11)
    return figure


class _Places:
    """Where the values of a setting lie on an axis.

    Args:
        values: The values.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self.numeric = all(map(_is_number, values))
        known = dict.fromkeys(values if self.numeric else map(str, values))
        self.values: list[Any] = sorted(known) if self.numeric else list(known)
        low, high = (self.values[0], self.values[-1]) if self.numeric else (0.0, 0.0)
        self.logarithmic = low > 0 and high > _DECADE * low

    def __call__(self, value: Any) -> float:
        """Coordinate of a value."""
        return float(value) if self.numeric else float(self.values.index(str(value)))

    def dress(self, axis: Any) -> None:
        """Scale and ticks; few values have a tick each."""
        few = len(self.values) <= _MOST_TICKS
        if self.logarithmic:
            plain_log(axis, "x")
        if few or not self.numeric:
            from matplotlib.ticker import NullLocator

            axis.set_xticks(list(map(self, self.values)), list(map(_word, self.values)))
            axis.xaxis.set_minor_locator(NullLocator())
        if not self.numeric:
            axis.set_xlim(-0.5, len(self.values) - 0.5)


def _losses(axis: Any, result: Sweep, lines: Sequence[Series], key: str, axis_of: _Places) -> None:
    """Final losses of the arm and of its baselines; what diverged is marked on the upper edge."""
    drawn: list[float] = []
    for place, line in enumerate(lines):
        name = f"{result.arm}, {line.label}" if line.label else result.arm
        drawn += _loss_line(axis, line, axis_of, _COLOURS[place % len(_COLOURS)], name)
    bases = series_of(result.baselines, key)
    for place, line in enumerate(bases):
        name, style = f"baseline, {line.label}" if line.label else "baseline", ("--", ":", "-.")[place % 3]
        if any(key in run.settings for group in line.groups.values() for run in group):
            drawn += _loss_line(axis, line, axis_of, _BASE, name, style)
            continue
        losses = [run.final_loss for group in line.groups.values() for run in group]
        if all(map(math.isfinite, losses)):  # the setting is the engine's: one baseline for all values
            axis.axhline(fmean(losses), color=_BASE, linewidth=1.4, linestyle=style, label=name)
            drawn.append(fmean(losses))
    axis.set_ylabel("final validation loss")
    _scale(axis, drawn)


def _loss_line(
    axis: Any, line: Series, axis_of: _Places, colour: str, name: str, style: str = "-"
) -> list[float]:
    """Draw means with their standard errors, and single seeds; the losses that are drawn."""
    points, drawn, gone = [], list[float](), []
    for value, runs in line.groups.items():
        finite = [run.final_loss for run in runs if math.isfinite(run.final_loss)]
        drawn += finite
        _dots(axis, axis_of(value), finite, colour, len(runs))
        if len(finite) == len(runs):
            error = standard_error(finite)
            points.append((axis_of(value), fmean(finite), 0.0 if math.isnan(error) else error))
        else:
            gone.append(axis_of(value))
    shown = style if axis_of.numeric else "none"
    if points:
        xs, means, errors = zip(*points, strict=True)
        axis.errorbar(
            xs,
            means,
            errors,
            color=colour,
            marker="o",
            markersize=5,
            linestyle=shown,
            capsize=3,
            label=name,
            zorder=2 if colour == _BASE else 3,
        )
    if gone:
        label = f"{name}: a seed diverged" if points else f"{name} (a seed diverged)"
        _on_edge(axis, gone, 0.99, colour, label)
    return drawn


def _gains(axis: Any, lines: Sequence[Series], axis_of: _Places) -> None:
    """Medians of the speed-ups; what misses the target in most seeds is marked on the lower edge."""
    drawn = [1.0]
    for place, line in enumerate(lines):
        colour = _COLOURS[place % len(_COLOURS)]
        for field, word, style in (("speedup_cost", "cost", "-"), ("speedup", "wall clock", ":")):
            name = f"{word}, {line.label}" if line.label else word
            points, missed = [], []
            for value, runs in line.groups.items():
                found = [getattr(run, field) for run in runs]
                if any(map(math.isnan, found)):
                    continue
                middle = median(found)
                reached = [gain for gain in found if 0.0 < gain < math.inf]
                if field == "speedup_cost":
                    _dots(axis, axis_of(value), reached, colour, len(runs))
                    drawn += reached
                if 0.0 < middle < math.inf:
                    points.append((axis_of(value), middle))
                    drawn.append(middle)
                elif middle <= 0.0:
                    missed.append(axis_of(value))
            if points:
                shown = style if axis_of.numeric else "none"
                face = colour if field == "speedup_cost" else "none"
                axis.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    marker="o",
                    markersize=5,
                    markerfacecolor=face,
                    linestyle=shown,
                    label=name,
                )
            if missed and field == "speedup_cost":
                _on_edge(axis, missed, 0.01, colour, f"{line.label or 'target'}: missed")
    axis.axhline(1.0, color=_BASE, linewidth=1.4, linestyle="--", label="baseline")
    axis.set_ylabel("times sooner to the baseline's final loss")
    _scale(axis, drawn, "x")


def _dots(axis: Any, x: float, values: Sequence[float], colour: str, count: int) -> None:
    """Single seeds, where there are more than one."""
    if count > 1 and values:
        axis.plot([x] * len(values), values, ".", color=colour, alpha=0.45, markersize=5, zorder=1)


def _on_edge(axis: Any, places: Sequence[float], height: float, colour: str, label: str) -> None:
    axis.plot(
        places,
        [height] * len(places),
        "x",
        transform=axis.get_xaxis_transform(),
        color=colour,
        markersize=7,
        clip_on=False,
        linestyle="none",
        label=label,
    )


def _scale(axis: Any, values: Sequence[float], suffix: str = "") -> None:
    """Logarithmic where the range asks for it."""
    if values and min(values) > 0.0 and max(values) > 5.0 * min(values):
        axis.set_ylim(0.85 * min(values), 1.2 * max(values))
        plain_log(axis, "y", suffix)
    elif values:
        margin = 0.1 * (max(values) - min(values)) or 0.1 * abs(max(values))
        axis.set_ylim(min(values) - margin, max(values) + margin)


def _title(result: Sweep, key: str) -> str:
    seeds = len({run.seed for run in result.runs})
    parts = [result.task, result.framework, f"{result.arm}, {seeds} seed{'s' * (seeds != 1)}"]
    note = "means over seeds with standard errors; speed-ups: medians" if seeds > 1 else ""
    if result.interrupted:
        note = "interrupted: what was measured so far" + (f"; {note}" if note else "")
    return " · ".join(part for part in parts if part) + (f"\n{note}" if note else "")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
