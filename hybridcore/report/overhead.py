"""What the engine itself costs against the paired baseline: time and memory (F51, F90)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import attrs

from hybridcore.compare import Comparison
from hybridcore.report.axes import plain_log

__all__ = ["Overhead", "draw_overhead", "overheads"]

_MIB = 2.0**20
_BYTES = 4.0
"""Of a float32 weight."""

_OWN, _BASE = "#0b6fd1", "#222222"

Summary = Mapping[str, Any]


@attrs.frozen
class Overhead:
    """What an engine cost over all its seeds.

    Attributes:
        label: The arm, or what else the bar is called.
        extra_time: Share by which training took longer than the paired baseline's, which made as many real
            steps; median over seeds, NaN without a baseline.
        trials: Share of the run that probes, failed trials and restores took; median over seeds.
        history: Largest memory of the history, in MiB.
        weights: Memory of the trained weights in float32, in MiB.
        resident: Most memory of the process while the arm was trained, in MiB; median over seeds, NaN where
            it was not recorded.
        resident_extra: The same above the paired baseline's, in MiB; NaN without a baseline.
        device: Most memory that the device's allocator had in use, in MiB; NaN on the host.
        device_extra: The same above the paired baseline's, in MiB.
    """

    label: str
    extra_time: float
    trials: float
    history: float
    weights: float
    resident: float = math.nan
    resident_extra: float = math.nan
    device: float = math.nan
    device_extra: float = math.nan


def overheads(comparison: Comparison) -> tuple[Overhead, ...]:
    """One entry for each arm that ran the engine to its end, in the order of the table."""
    runs = [r for r in comparison.records if r.summary is not None and not r.summary.get("interrupted")]
    base = {r.seed: r.summary for r in runs if r.arm == "baseline" and r.summary is not None}
    found = []
    for arm in dict.fromkeys(record.arm for record in runs):
        own = [(r, r.summary) for r in runs if r.arm == arm and r.summary is not None]
        if not any(summary.get("history_bytes") for _, summary in own):
            continue
        ratios = [
            float(s["elapsed"]) / float(base[r.seed]["elapsed"]) - 1.0
            for r, s in own
            if r.seed in base and base[r.seed]["elapsed"]
        ]
        resident, device = (
            _peaks([(s, base.get(r.seed)) for r, s in own], f"{name}_peak_bytes")
            for name in ("resident", "device")
        )
        found.append(
            Overhead(
                label=arm,
                extra_time=_median(ratios),
                trials=median(float(summary.get("overhead_share") or 0.0) for _, summary in own),
                history=max(float(summary.get("history_bytes") or 0.0) for _, summary in own) / _MIB,
                weights=_BYTES * float(own[0][0].start.get("parameters", 0)) / _MIB,
                resident=resident[0],
                resident_extra=resident[1],
                device=device[0],
                device_extra=device[1],
            )
        )
    return tuple(found)


def _peaks(pairs: Sequence[tuple[Summary, Summary | None]], key: str) -> tuple[float, float]:
    """Medians of an arm's peak memory and of what that is above the paired baseline's, in MiB."""
    own = [float(summary[key]) / _MIB for summary, _ in pairs if summary.get(key)]
    extra = [
        (float(summary[key]) - float(base[key])) / _MIB
        for summary, base in pairs
        if base is not None and summary.get(key) and base.get(key)
    ]
    return _median(own), _median(extra)


def _median(values: Sequence[float]) -> float:
    return float(median(values)) if values else math.nan


def draw_overhead(figure: Any, found: Sequence[Overhead]) -> None:
    """Extra time, the engine's own memory, and peak memory beside the baseline's, from left to right.

    Args:
        figure: An empty matplotlib figure.
        found: What is drawn, from top to bottom.
    """
    kinds = {"resident": "most resident memory of the process", "device": "most memory in use on the device"}
    peaks = [kind for kind in kinds if any(math.isfinite(getattr(entry, kind)) for entry in found)]
    panels = figure.subplots(1, 2 + len(peaks), sharey=True)
    shown = list(reversed(found))
    _extra_time(panels[0], shown)
    _own_memory(panels[1], shown)
    for axis, kind in zip(panels[2:], peaks, strict=True):
        _peak_memory(axis, shown, kind)
        axis.set(xlabel=f"{kinds[kind]}, MiB")
    handles = {
        label: handle
        for axis in panels[1:]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower right", ncols=len(handles), frameon=False)
    for axis in panels:
        axis.grid(alpha=0.25, axis="x")
        axis.spines[["top", "right"]].set_visible(False)


def _extra_time(axis: Any, shown: Sequence[Overhead]) -> None:
    places = range(len(shown))
    extra = [100.0 * entry.extra_time for entry in shown]
    axis.barh(places, extra, color=_OWN, height=0.6)
    axis.axvline(2.0, color="#b8402f", linewidth=1, linestyle=":")
    axis.axvline(0.0, color=_BASE, linewidth=1)
    axis.set(xlabel="extra time of as many real steps, %\n(dotted: the aim, 2 %)")
    axis.set_yticks(places, [entry.label for entry in shown])
    for place, value in zip(places, extra, strict=True):
        _write(axis, f"{value:.1f}", max(value, 0.0), place)
    axis.margins(x=0.16)


def _own_memory(axis: Any, shown: Sequence[Overhead]) -> None:
    """Points, since a bar on a logarithmic axis has no length."""
    places = range(len(shown))
    weights, history = ([getattr(entry, name) for entry in shown] for name in ("weights", "history"))
    axis.hlines(places, weights, history, color="#bbbbbb", linewidth=1.5, zorder=1)
    axis.plot(weights, places, "D", color="#777777", markersize=6, label="weights")
    axis.plot(history, places, "o", color=_OWN, markersize=7, label="history")
    axis.set(xlabel="memory of weights and history, MiB")
    if positive := [value for value in (*weights, *history) if value > 0.0]:
        axis.set_xlim(0.5 * min(positive), 2.0 * max(positive))
        plain_log(axis, "x")


def _peak_memory(axis: Any, shown: Sequence[Overhead], kind: str) -> None:
    """Bars of the arm and, above each, of its baseline; the difference stands beside them."""
    for place, entry in enumerate(shown):
        own, extra = getattr(entry, kind), getattr(entry, f"{kind}_extra")
        if not math.isfinite(own):
            continue
        paired = math.isfinite(extra)
        axis.barh([place - 0.19 * paired], [own], height=0.36, color=_OWN, label="arm, at its peak")
        if paired:
            label = "its baseline, at its peak"
            axis.barh([place + 0.19], [own - extra], height=0.36, color=_BASE, alpha=0.6, label=label)
            _write(axis, f"{extra:+.3g}", max(own, own - extra), place)
    axis.margins(x=0.16)


def _write(axis: Any, text: str, x: float, place: int) -> None:
    if math.isfinite(x):
        axis.annotate(text, (x, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
