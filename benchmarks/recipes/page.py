"""The round as one self-contained HTML page: tables, figures, and the curves of every recipe."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import attrs

from benchmarks.recipes.plan import OWN_RATE, PUBLISHED_RIVALS
from benchmarks.recipes.rows import Row
from benchmarks.recipes.table import Table, tables
from hybridcore.compare import Comparison
from hybridcore.report.figure import draw
from hybridcore.report.page import STYLE, html_table

__all__ = ["save_page"]


def save_page(rows: Sequence[Row], figures: Mapping[str, Path], origin: str, path: Path) -> None:
    """Write the page; it needs no other file."""
    title = "Published recipes: prediction beside its controls and rivals"
    aims, published, tuned, rivals, losses, recipes = map(_table, tables(rows))
    pictures = {name: _picture(file.read_bytes(), name) for name, file in figures.items()}
    first, *others = pictures.values()
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(origin)}</p>", aims, first, published, tuned, rivals]
    parts += [*others, losses, recipes, "<h2>Curves</h2>"]
    for row in rows:
        if row.part:
            continue
        buffer = io.BytesIO()
        draw(_shown(row)).savefig(buffer, format="png", dpi=90)
        parts += [f"<h3>{escape(row.recipe.name)}</h3>", _picture(buffer.getvalue(), row.recipe.name)]
    body = "\n".join(parts)
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n",
        encoding="utf-8",
    )


def _shown(row: Row) -> Comparison:
    """The arms that are worth a curve, under the recipe's own name."""
    arms = {"baseline", "hybrid", "tuned", "hybrid-tuned", "frozen", "lr-x10"}
    arms |= {row.best(PUBLISHED_RIVALS)[0], row.best(OWN_RATE)[0]}
    records = tuple(
        attrs.evolve(record, start={**record.start, "task": row.recipe.name})
        for record in row.comparison.records
        if record.arm in arms
    )
    rows = tuple(arm for arm in row.comparison.rows if arm.arm.partition(", ")[0] in arms)
    return attrs.evolve(row.comparison, records=records, rows=rows)


def _picture(data: bytes, name: str) -> str:
    return f'<p><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}"></p>'


def _table(table: Table) -> str:
    return f"<h2>{escape(table.title)}</h2>\n{html_table(table.head, table.cells, table.note)}"
