"""Speed-up against the learning rate over the best one: prediction beside its rivals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs

from benchmarks.rivals import RIVALS
from benchmarks.settings import Setting
from hybridcore.records import RunRecord, median_speedup, read_run, speedup
from hybridcore.runfiles import finished

__all__ = ["CURVE_ARMS", "Point", "curve", "curve_table", "draw_curve"]

CURVE_ARMS = ("hybrid", "fast-forward", "schedule-free", "prodigy")
FLOOR = 0.3
"""Where a missed target is drawn."""


@attrs.frozen
class Point:
    """One arm at one rate.

    Attributes:
        setting: The recipe.
        arm: The arm.
        rate_over_best: Its rate over the best of the same model and optimizer.
        cost: Median speed-up in cost to the baseline's final loss; 0 where that is missed, NaN where the
            baseline itself diverged or there is no run.
        wall: The same in wall-clock time.
        final: Median final validation loss.
        seeds: Seeds it comes from.
    """

    setting: Setting
    arm: str
    rate_over_best: float
    cost: float
    wall: float
    final: float
    seeds: int


def curve(settings: Sequence[Setting], arms: Sequence[str], folder: Path) -> list[Point]:
    """All points that the runs in a folder give.

    An arm that reads no learning rate is run at one rate only and stands beside the baseline of each.
    """
    runs = {s: {arm: _runs(folder / s.name / arm) for arm in ("baseline", *arms)} for s in settings}
    families = dict.fromkeys((s.model, s.optimizer) for s in settings)
    points = []
    for family in families:
        own = [s for s in settings if (s.model, s.optimizer) == family and runs[s]["baseline"]]
        if not own:
            continue
        finals = {s: _typical([r.final_loss for r in runs[s]["baseline"].values()]) for s in own}
        best = min(own, key=lambda s: finals[s] if math.isfinite(finals[s]) else math.inf)
        shared = {arm: next((runs[s][arm] for s in own if runs[s][arm]), {}) for arm in arms}
        for setting in own:
            for arm in ("baseline", *arms):
                free = arm in RIVALS and RIVALS[arm].own_rate
                found = shared[arm] if free else runs[setting][arm]
                points.append(
                    _point(setting, arm, setting.rate / best.rate, found, runs[setting]["baseline"])
                )
    return points


def _point(
    setting: Setting, arm: str, ratio: float, found: dict[int, RunRecord], baseline: dict[int, RunRecord]
) -> Point:
    paired = [seed for seed in found if seed in baseline]
    gains = [speedup(found[seed].evaluations, baseline[seed].evaluations) for seed in paired]
    known = [gain for gain in gains if gain is not None]
    return Point(
        setting,
        arm,
        ratio,
        median_speedup([gain.cost for gain in known]),
        median_speedup([gain.wall for gain in known]),
        _typical([found[seed].final_loss for seed in paired]),
        len(paired),
    )


def _runs(folder: Path) -> dict[int, RunRecord]:
    places = sorted(folder.glob("seed-*")) if folder.is_dir() else []
    return {r.seed: r for r in (read_run(p / "metrics.jsonl") for p in places if finished(p))}


def _typical(values: Sequence[float]) -> float:
    return float(median(values)) if values else math.nan


def curve_table(points: Sequence[Point], arms: Sequence[str]) -> str:
    """Markdown: a row for each recipe, speed-up in cost and final loss by arm."""
    by: dict[tuple[Setting, str], Point] = {(p.setting, p.arm): p for p in points}
    head = (
        "| setting | rate / best | final: baseline | " + " | ".join(f"{a}: cost, final" for a in arms) + " |"
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for setting in dict.fromkeys(p.setting for p in points):
        base = by[setting, "baseline"]
        cells = [setting.name, f"{base.rate_over_best:.3g}", f"{base.final:.4f}"]
        for arm in arms:
            point = by[setting, arm]
            gain = "-" if math.isnan(point.cost) else f"{point.cost:.2f}x" if point.cost > 0 else "missed"
            cells.append(f"{gain}, {point.final:.4f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curve(points: Sequence[Point], arms: Sequence[str], path: Path, label: str) -> None:
    """One panel for each task, one line for each arm; missed targets lie on the lower edge.

    Args:
        points: What to draw.
        arms: Arms in the order of the legend.
        path: PNG file.
        label: What the hybrid arm is called.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401 - the backend of savefig
    from matplotlib.figure import Figure

    families = dict.fromkeys((p.setting.model, p.setting.optimizer) for p in points)
    figure = Figure(figsize=(4.2 * max(1, len(families)), 4.2), layout="constrained")
    panels: Any = figure.subplots(1, max(1, len(families)), sharey=True, squeeze=False)[0]
    for axis, family in zip(panels, families, strict=False):
        for arm, marker in zip(arms, "os^Dvx", strict=False):
            found = sorted(
                (p.rate_over_best, max(p.cost, FLOOR))
                for p in points
                if (p.setting.model, p.setting.optimizer) == family
                and p.arm == arm
                and not math.isnan(p.cost)
            )
            if found:
                name = label if arm == "hybrid" else arm
                width = 2.2 if arm == "hybrid" else 1.2
                axis.plot(*zip(*found, strict=True), marker=marker, linewidth=width, label=name)
        axis.axhline(1.0, color="#222222", linewidth=1, linestyle=":")
        axis.set(xscale="log", yscale="log", xlabel="learning rate / best learning rate")
        axis.set_title(" ".join(family))
        axis.set_ylim(bottom=0.9 * FLOOR)
        axis.yaxis.set_major_formatter("{x:g}x")
        axis.grid(alpha=0.25, which="both")
    panels[0].set_ylabel("speed-up in cost to the baseline's final loss")
    panels[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
