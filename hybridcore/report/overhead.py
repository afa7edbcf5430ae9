"""What the engine itself costs against the paired baseline: time and memory (F51, F90)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import attrs

from hybridcore.compare import Comparison
from hybridcore.report.axes import plain_log

__all__ = ["Overhead", "draw_overhead", "overheads"]

_MIB = 2.0**20
_BYTES = 4.0
"""Of a float32 weight."""


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
    """

    label: str
    extra_time: float
    trials: float
    history: float
    weights: float


def overheads(comparison: Comparison) -> tuple[Overhead, ...]:
    """One entry for each arm that ran the engine, in the order of the table."""
    runs = [record for record in comparison.records if record.summary is not None]
    base = {r.seed: float((r.summary or {})["elapsed"]) for r in runs if r.arm == "baseline"}
    found = []
    for arm in dict.fromkeys(record.arm for record in runs):
        own = [(r, r.summary) for r in runs if r.arm == arm and r.summary is not None]
        if not any(summary.get("history_bytes") for _, summary in own):
            continue
        ratios = [float(s["elapsed"]) / base[r.seed] - 1.0 for r, s in own if base.get(r.seed)]
        found.append(
            Overhead(
                label=arm,
                extra_time=median(ratios) if ratios else math.nan,
                trials=median(float(summary.get("overhead_share") or 0.0) for _, summary in own),
                history=max(float(summary.get("history_bytes") or 0.0) for _, summary in own) / _MIB,
                weights=_BYTES * float(own[0][0].start.get("parameters", 0)) / _MIB,
            )
        )
    return tuple(found)


def draw_overhead(figure: Any, found: Sequence[Overhead]) -> None:
    """Bars of extra time on the left, of memory on the right, from top to bottom.

    Args:
        figure: An empty matplotlib figure.
        found: What is drawn.
    """
    left, right = figure.subplots(1, 2, sharey=True)
    shown, places = list(reversed(found)), range(len(found))
    extra = [100.0 * entry.extra_time for entry in shown]
    left.barh(places, extra, color="#0b6fd1", height=0.6)
    left.axvline(2.0, color="#b8402f", linewidth=1, linestyle=":")
    left.axvline(0.0, color="#222222", linewidth=1)
    left.set(xlabel="extra time of as many real steps, % (dotted: the aim, 2 %)")
    left.set_yticks(places, [entry.label for entry in shown])
    for place, value in zip(places, extra, strict=True):
        if math.isfinite(value):
            left.annotate(
                f"{value:.1f}",
                (max(value, 0.0), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    left.margins(x=0.12)
    weights, history = ([getattr(e, name) for e in shown] for name in ("weights", "history"))
    for name, colour, offset, values in (
        ("weights", "#777777", 0.19, weights),
        ("history", "#0b6fd1", -0.19, history),
    ):
        right.barh([place + offset for place in places], values, height=0.36, color=colour, label=name)
    right.set(xlabel="memory, MiB")
    if positive := [value for value in (*weights, *history) if value > 0.0]:
        right.set_xlim(0.5 * min(positive), 2.0 * max(positive))
        plain_log(right, "x")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.25, axis="x")
        axis.spines[["top", "right"]].set_visible(False)
