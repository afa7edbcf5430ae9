"""The table and the figure of `benchmarks.predict`: every setting beside its baseline and the best one."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.rivals import RIVALS
from benchmarks.settings import Plan, Setting
from hybridcore.compare import Comparison
from hybridcore.metrics import plain_json
from hybridcore.records import median_speedup, speedup

__all__ = ["Row", "draw", "edges", "markdown", "report", "rows", "worst"]


@attrs.frozen
class Row:
    """A setting's outcome; speed-ups are medians over seeds of ratios to the paired baseline.

    Attributes:
        setting: The recipe.
        rate_over_best: Its learning rate over the best one of the same optimizer and schedule.
        tuned_loss: Final loss of the best baseline of the same model and optimizer.
        final: Median final validation loss by arm.
        cost: Speed-up in cost by arm; 0 where the target is missed.
        cost_low: The smallest over the seeds.
        wall: Speed-up in wall-clock time by arm.
        tuned_cost: Speed-up in cost of the best baseline of the same model and optimizer, on its seeds.
    """

    setting: Setting
    rate_over_best: float
    tuned_loss: float
    final: dict[str, float]
    cost: dict[str, float]
    cost_low: dict[str, float]
    wall: dict[str, float]
    tuned_cost: float = math.nan

    @property
    def best_control(self) -> tuple[str, float]:
        """The control arm that reaches the target first, and its speed-up in cost."""
        return self._best(lambda arm: arm not in RIVALS)

    @property
    def best_rival(self) -> tuple[str, float]:
        """The same among the rivals."""
        return self._best(lambda arm: arm in RIVALS)

    def _best(self, among: Callable[[str], bool]) -> tuple[str, float]:
        own = ("hybrid", "baseline", "reshuffled")
        others = {arm: g for arm, g in self.cost.items() if not arm.startswith(own)}
        found = {arm: g for arm, g in others.items() if among(arm) and not math.isnan(g)}
        best = max(found, key=lambda arm: found[arm], default="-")
        return best, found.get(best, math.nan)


def rows(results: Mapping[Setting, Comparison]) -> list[Row]:
    """Rows of the table from the comparisons of all settings."""
    losses = {setting: result.row("baseline").final_loss for setting, result in results.items()}

    def best(setting: Setting, *fields: str) -> Setting:
        alike = [s for s in losses if all(getattr(s, f) == getattr(setting, f) for f in fields)]
        return min(alike, key=lambda s: _or_infinite(losses[s]))

    def tuned_cost(setting: Setting) -> float:
        other = results[best(setting, "model", "optimizer")].records
        tuned = {r.seed: r.evaluations for r in other if r.arm == "baseline"}
        own = {r.seed: r.evaluations for r in results[setting].records if r.arm == "baseline"}
        gains = [speedup(tuned[seed], own[seed]) for seed in tuned.keys() & own.keys()]
        return median_speedup([gain.cost for gain in gains if gain is not None])

    table = []
    for setting, result in results.items():
        if setting.shown and setting in losses:
            arms = {row.arm: row for row in result.rows}
            table.append(
                Row(
                    setting,
                    setting.rate / best(setting, "model", "optimizer", "schedule").rate,
                    losses[best(setting, "model", "optimizer")],
                    {arm: row.final_loss for arm, row in arms.items()},
                    {arm: row.speedup_cost for arm, row in arms.items()},
                    {arm: row.speedup_cost_low for arm, row in arms.items()},
                    {arm: row.speedup_wall for arm, row in arms.items()},
                    tuned_cost(setting),
                )
            )
    return table


def edges(results: Mapping[Setting, Comparison]) -> list[str]:
    """Names of the best recipes whose rate is the largest or smallest tried: another may be better."""
    groups: dict[tuple[str, str, str], list[Setting]] = {}
    for setting in results:
        groups.setdefault((setting.model, setting.optimizer, setting.schedule), []).append(setting)
    found = []
    for alike in groups.values():
        best = min(alike, key=lambda s: _or_infinite(results[s].row("baseline").final_loss))
        if best.rate in (max(s.rate for s in alike), min(s.rate for s in alike)):
            found.append(best.name)
    return found


def _or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def markdown(table: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = (
        "| setting | rate / best | final: baseline | hybrid | hybrid, averaged | baseline, averaged "
        "| tuned | speed-up, cost: hybrid | hybrid, averaged | baseline, averaged | tuned | best control "
        "| best rival | speed-up, wall: hybrid | hybrid, averaged |"
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in table:
        control, gain = row.best_control
        rival, rival_gain = row.best_rival
        cells = [
            row.setting.name,
            f"{row.rate_over_best:.3g}",
            *(
                _loss(row.final.get(arm, math.nan))
                for arm in ("baseline", "hybrid", "hybrid, averaged", "baseline, averaged")
            ),
            _loss(row.tuned_loss),
            *(_gain(row.cost.get(arm)) for arm in ("hybrid", "hybrid, averaged", "baseline, averaged")),
            _gain(row.tuned_cost),
            f"{_gain(gain)} {control}",
            f"{_gain(rival_gain)} {rival}",
            *(_gain(row.wall.get(arm)) for arm in ("hybrid", "hybrid, averaged")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def worst(table: Iterable[Row]) -> str:
    """The row in which the hybrid gains least."""
    whole = [row for row in table if "hybrid" in row.cost]
    if not whole:
        return "no row has its hybrid run yet"
    row = min(whole, key=lambda r: r.cost["hybrid"])
    return (
        f"worst row: {row.setting.name}, hybrid {_gain(row.cost['hybrid'])} in cost, "
        f"final loss {_loss(row.final['hybrid'])} against {_loss(row.final['baseline'])}"
    )


def _loss(value: float) -> str:
    if not math.isfinite(value):
        return "diverged"
    return f"{value:.4f}" if 0.01 <= abs(value) < 1e4 or value == 0.0 else f"{value:.2g}"


def _gain(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.2f}x" if value > 0 else "missed"


def draw(table: Sequence[Row], path: Path) -> None:
    """Speed-up against the learning rate over the best one; missed targets lie on the lower edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401 - the backend of savefig
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 6.0), layout="constrained")
    axis = figure.subplots()
    floor, families = 0.4, dict.fromkeys((r.setting.model, r.setting.optimizer) for r in table)
    looks = {"hybrid": ("o", 1.0), "hybrid, averaged": ("^", 0.75), "baseline, averaged": ("x", 0.75)}
    for (model, optimizer), colour in zip(families, (f"C{i}" for i in range(10)), strict=False):
        own = [r for r in table if (r.setting.model, r.setting.optimizer) == (model, optimizer)]
        for arm, (marker, alpha) in looks.items():
            for schedule, fill in (("constant", colour), ("cosine", "none")):
                found = sorted(
                    (r.rate_over_best, max(r.cost[arm], floor))
                    for r in own
                    if r.setting.schedule == schedule and not math.isnan(r.cost.get(arm, math.nan))
                )
                if found:
                    axis.plot(
                        *zip(*found, strict=True),
                        marker=marker,
                        markersize=9,
                        color=colour,
                        alpha=alpha,
                        markerfacecolor=fill,
                        linestyle="-" if arm == "hybrid" and schedule == "constant" else "none",
                        label=f"{model} {optimizer}, {arm}" if schedule == "constant" else None,
                    )
    axis.axhline(1.0, color="#222222", linewidth=1, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel="learning rate / best learning rate")
    axis.set(ylabel="speed-up in cost to the baseline's final loss")
    axis.set_ylim(bottom=0.9 * floor)
    axis.yaxis.set_major_formatter("{x:g}x")
    axis.set_title("hollow: cosine decay; on the lower edge: target missed", fontsize=10)
    axis.grid(alpha=0.25, which="both")
    figure.legend(fontsize=7, loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def report(table: Sequence[Row], plan: Plan, seconds: float) -> dict[str, Any]:
    """Everything as plain data."""
    data: dict[str, Any] = plain_json(
        {
            "rows": [
                {
                    "name": row.setting.name,
                    "best_control": row.best_control,
                    "best_rival": row.best_rival,
                    **attrs.asdict(row),
                }
                for row in table
            ],
            "steps": plan.steps,
            "validation": plan.validation,
            "seeds": plan.seeds,
            "controller": plan.controller,
            "overrides": plan.overrides,
            "device": plan.device,
            "data": "fashion-mnist" if plan.data is not None else "mnist",
            "seconds": seconds,
            "python": platform.python_version(),
        }
    )
    return data
