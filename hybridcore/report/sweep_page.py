"""A sweep's table, and its report as one self-contained HTML page (F76, F90)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hybridcore.report.page import STYLE, html_table
from hybridcore.report.sweep_figure import draw_sweep
from hybridcore.report.table import number
from hybridcore.sweep_results import Sweep, summarise_sweep

__all__ = [
    "SWEEP_NOTE",
    "render_sweep_page",
    "save_sweep_page",
    "settings_of",
    "sweep_cells",
    "sweep_columns",
]

_COUNTS = ("backward_passes", "predicted_steps", "verdicts_kept", "verdicts_failed", "divergences")

SWEEP_NOTE = (
    "means over seeds ± standard error; speed-up: median over seeds, to the final validation loss of the "
    "paired baseline; ~: it lies before the first evaluation, so that the time to it is drawn, not measured"
)
"""How the table is to be read."""


def sweep_columns(result: Sweep) -> tuple[str, ...]:
    """Headings: the settings first, and those of the baseline only where there is one."""
    paired = ("baseline's loss", "speed-up, wall clock", "speed-up, cost") if result.baselines else ()
    words = (name.replace("_", " ") for name in _COUNTS)
    return (*_short(settings_of(result)), "seeds", "final loss", *paired, "seconds", "cost", *words)


def settings_of(result: Sweep) -> tuple[str, ...]:
    """Keys of the settings that the sweep varied."""
    return tuple(dict.fromkeys(key for run in result.runs for key in run.settings))


def _short(keys: Sequence[str]) -> tuple[str, ...]:
    """Last words of dotted keys, where these differ."""
    words = tuple(key.rpartition(".")[2] for key in keys)
    return words if len(set(words)) == len(words) else tuple(keys)


def sweep_cells(result: Sweep) -> list[tuple[str, ...]]:
    """One row for each combination, the lowest final loss first, in the order of `sweep_columns`."""
    rows = []
    for row in summarise_sweep(result):
        settings = (_word(row["settings"].get(key, "")) for key in settings_of(result))
        gains = (_gain(row[name], row["drawn"]) for name in ("speedup", "speedup_cost"))
        paired = (number(row["baseline_loss"]), *gains) if result.baselines else ()
        counts = (number(row["counts"].get(name)) for name in _COUNTS)
        ends = (number(row["seconds"]), number(row["cost"]))
        rows.append((*settings, str(row["runs"]), _loss(row), *paired, *ends, *counts))
    return rows


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _gain(value: float, drawn: int) -> str:
    if math.isnan(value):
        return "-"
    return "missed" if value == 0.0 else f"{'~' * bool(drawn)}{value:.2f}"


def _loss(row: Mapping[str, Any]) -> str:
    if row["diverged"]:
        return f"{row['diverged']} diverged"
    error = row["final_loss_error"]
    return number(row["final_loss"]) + ("" if math.isnan(error) else f" ± {error:.2g}")


def save_sweep_page(result: Sweep, path: str | Path) -> Path:
    """Write the page; it needs no other file.

    Raises:
        PluginError: matplotlib is not installed.
    """
    text, file = render_sweep_page(result), Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def render_sweep_page(result: Sweep) -> str:
    """The page as HTML text: figure, combinations, and every run.

    Raises:
        PluginError: matplotlib is not installed.
    """
    buffer = io.BytesIO()
    draw_sweep(result).savefig(buffer, format="png", dpi=150)
    data = base64.b64encode(buffer.getvalue()).decode()
    title = f"Sweep of {result.arm}" + (f": {result.task} on {result.framework}" if result.task else "")
    note = SWEEP_NOTE[0].upper() + SWEEP_NOTE[1:] + "."
    head, runs = _runs(result)
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<p><b>Interrupted: the page shows what was measured so far.</b></p>" if result.interrupted else "",
        f'<img alt="Final loss and speed-up by setting" src="data:image/png;base64,{data}">',
        "<h2>Combinations, lowest final validation loss first</h2>",
        html_table(sweep_columns(result), sweep_cells(result), note),
        "<h2>Runs</h2>",
        html_table(head, runs, text=(len(head) - 2, len(head) - 1)),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _runs(result: Sweep) -> tuple[tuple[str, ...], list[Sequence[str]]]:
    """Headings and cells of all runs, those of the baseline last."""
    keys = settings_of(result)
    rows: list[Sequence[str]] = []
    for arm, runs in ((result.arm, result.runs), ("baseline", result.baselines)):
        for run in runs:
            cells = [arm, *(_word(run.settings.get(key, "any")) for key in keys), str(run.seed)]
            cells += [number(run.final_loss), number(run.seconds), number(run.cost)]
            rows.append([*cells, run.directory, run.error or ""])
    return ("arm", *keys, "seed", "final loss", "seconds", "cost", "folder", "error"), rows
