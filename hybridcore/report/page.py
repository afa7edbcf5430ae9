"""The report as one self-contained HTML page (F90)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import tomli_w

from hybridcore.compare import Comparison
from hybridcore.records import RunRecord
from hybridcore.report.figure import draw, matplotlib_figure
from hybridcore.report.overhead import Overhead, draw_overhead, overheads
from hybridcore.report.table import (
    NOTE,
    OVERHEAD_NOTE,
    arm_cells,
    arm_columns,
    number,
    overhead_cells,
    overhead_columns,
    summary_lines,
    target_line,
)

__all__ = ["STYLE", "html_table", "render_page", "save_page"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
img { max-width: 100% } .wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child, .text { text-align: left }
td.text { white-space: normal }
summary { cursor: pointer } pre { overflow-x: auto; background: #f6f6f6; padding: .8rem }
caption { caption-side: bottom; text-align: left; color: #666; padding-top: .4rem }
"""
"""Style sheet of every report."""

_MOST_OPEN = 40
"""Rows that a table of verdicts may have and still be open."""


def save_page(comparison: Comparison, path: str | Path) -> Path:
    """Write the page; it needs no other file.

    Raises:
        PluginError: matplotlib is not installed.
    """
    file = Path(path)
    text = render_page(comparison)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def render_page(comparison: Comparison) -> str:
    """The page as HTML text: figure, arms, the hybrid run's verdicts and phases, and how it was run.

    Raises:
        PluginError: matplotlib is not installed.
    """
    start = comparison.records[0].start
    title = f"{start.get('task', 'run')} on {start.get('framework', 'unknown framework')}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<img alt="Validation loss against training time and cost" src="{_image(comparison)}">',
        "<h2>Arms</h2>",
        f"<p>{escape(target_line(comparison))}.</p>",
        html_table(arm_columns(), [arm_cells(row) for row in comparison.rows], _sentence(NOTE)),
    ]
    if found := overheads(comparison):
        rows = [overhead_cells(entry, found) for entry in found]
        table = html_table(overhead_columns(found), rows, _sentence(OVERHEAD_NOTE))
        parts += ["<h2>Overhead and memory</h2>", _overhead_image(found), table]
    hybrid = next((record for record in comparison.records if record.arm == "hybrid"), None)
    if hybrid is not None:
        parts += _hybrid(hybrid)
    parts += ["<h2>How it was run</h2>", html_table(("", ""), _origin(comparison), text=(1,))]
    parts.append(_folded("Configuration", f"<pre>{escape(_configuration(start))}</pre>"))
    if comparison.interrupted:
        parts.insert(1, "<p><b>Interrupted: the page shows what was measured so far.</b></p>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _hybrid(record: RunRecord) -> list[str]:
    parts = [f"<h2>Hybrid run, seed {record.seed}</h2>"]
    if record.summary is not None:
        parts.append(html_table(("", ""), summary_lines(record.summary)))
    parts += [
        "<h2>Loss by phase</h2>",
        html_table(("phase", "real steps", "mean training loss"), _phases(record)),
    ]
    if record.verdicts:
        keys = (
            "step",
            "predictor",
            "horizon",
            "jumps",
            "kept",
            "gain",
            "gain_error",
            "credit_steps",
            "reason",
        )
        rows = [[_cell(verdict.get(key)) for key in keys] for verdict in record.verdicts]
        headings = [key.replace("_", " ") for key in keys]
        table = html_table(headings, rows, text=(1, 8))
        kept = sum(bool(verdict.get("kept")) for verdict in record.verdicts)
        count = f"{len(rows)} verdicts, {kept} kept"
        parts += ["<h2>Verdicts</h2>", _folded(count, table, opened=len(rows) <= _MOST_OPEN)]
    return parts


def _folded(title: str, content: str, *, opened: bool = False) -> str:
    """Content under a title that opens it."""
    return f"<details{' open' * opened}><summary>{escape(title)}</summary>\n{content}</details>"


def _sentence(note: str) -> str:
    return note[0].upper() + note[1:] + "."


def _configuration(start: Mapping[str, Any]) -> str:
    """The configuration that the first run was begun with, as TOML; its seed is that run's."""
    return tomli_w.dumps(start.get("config") or {})


def _phases(record: RunRecord) -> list[tuple[str, str, str]]:
    by_phase: dict[str, list[float]] = {}
    for step in record.steps:
        if step.get("loss") is not None:
            by_phase.setdefault(str(step.get("phase")), []).append(float(step["loss"]))
    return [
        (phase, str(len(losses)), number(math.fsum(losses) / len(losses)))
        for phase, losses in by_phase.items()
    ]


def _origin(comparison: Comparison) -> list[tuple[str, str]]:
    start = comparison.records[0].start
    versions = ", ".join(f"{name} {version}" for name, version in start.get("versions", {}).items())
    return [
        ("seeds", ", ".join(str(seed) for seed in sorted({r.seed for r in comparison.records}))),
        ("parameters", str(start.get("parameters", ""))),
        ("versions", versions),
        ("device", str(start.get("device", ""))),
        ("machine", str(start.get("machine", ""))),
        ("started", str(start.get("time", ""))),
    ]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) or value is None else str(value)


def html_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", text: Sequence[int] = ()
) -> str:
    """A table as HTML; its words are escaped.

    Args:
        headings: Headings; none are shown where all are empty.
        rows: Cells.
        caption: Stands below it.
        text: Places of columns that hold words, beside the first; the others hold numbers.
    """
    marks = [' class="text"' * (place in text) for place in range(len(headings))]

    def line(kind: str, cells: Sequence[str]) -> str:
        own = (f"<{kind}{mark}>{escape(cell)}</{kind}>" for mark, cell in zip(marks, cells, strict=True))
        return f"<tr>{''.join(own)}</tr>"

    head, body = line("th", headings), "".join(line("td", row) for row in rows)
    note = f"<caption>{escape(caption)}</caption>" if caption else ""
    shown = f"<thead>{head}</thead>" if any(headings) else ""
    return f'<div class="wide"><table>{note}{shown}<tbody>{body}</tbody></table></div>'


def _overhead_image(found: Sequence[Overhead]) -> str:
    buffer = io.BytesIO()
    figure = matplotlib_figure()(figsize=(12, 1.6 + 0.4 * len(found)), layout="constrained")
    draw_overhead(figure, found)
    figure.savefig(buffer, format="png", dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="Overhead and memory" src="data:image/png;base64,{data}">'


def _image(comparison: Comparison) -> str:
    buffer = io.BytesIO()
    draw(comparison).savefig(buffer, format="png", dpi=150)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
