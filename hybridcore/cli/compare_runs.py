"""`hybridcore compare-runs`: recorded runs side by side."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
from rich.table import Table

from hybridcore.cli.common import output
from hybridcore.parity import Parity, parities
from hybridcore.records import read_run
from hybridcore.runfiles import write_json

__all__ = ["compare_runs"]


def compare_runs(
    directory: Path, /, *directories: Path, tolerance: float | None = None, json: Path | None = None
) -> int:
    """Put recorded runs side by side: decisions, and how far the losses lie apart.

    Args:
        directory: Folder of the run that the others are compared with.
        directories: Folders of further runs.
        tolerance: Exit with 1 where decisions differ, or losses by more than this share.
        json: File that receives the comparison too.
    """
    found = parities([read_run(path) for path in (directory, *directories)])
    output().print(_table(found))
    for one in found:
        if one.first_difference is not None:
            line = f"{_name(one)} parts from {_name(found[0])} at {one.first_difference}"
            output().print(line, markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        write_json(json, {"tolerance": tolerance, "runs": [_plain(one) for one in found]})
    return 0 if tolerance is None or all(one.holds(tolerance) for one in found) else 1


def _table(found: tuple[Parity, ...]) -> Table:
    table = Table(title="Runs side by side", caption="deviations: largest share, against the first run")
    for heading in ("run", "real steps", "jumps", "verdicts kept", "failed", "final loss"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for heading in ("phases", "jumps", "verdicts", "training loss", "validation loss"):
        table.add_column(heading)
    for one in found:
        summary = one.record.summary or {}
        table.add_row(
            _name(one),
            *(str(summary.get(k, "-")) for k in ("real_steps", "jumps", "verdicts_kept", "verdicts_failed")),
            f"{one.record.final_loss:.6g}",
            *("same" if same else "differ" for same in (one.same_phases, one.same_jumps, one.same_verdicts)),
            *(
                "-" if math.isnan(gap) else f"{gap:.1e}"
                for gap in (one.loss_deviation, one.evaluation_deviation)
            ),
        )
    return table


def _name(one: Parity) -> str:
    start = one.record.start
    return f"{start.get('framework', '?')} {start.get('arm', '')} seed {one.record.seed}".replace("  ", " ")


def _plain(one: Parity) -> dict[str, object]:
    own = attrs.asdict(one, filter=lambda attribute, _: attribute.name != "record")
    return {"framework": one.record.start.get("framework"), "path": str(one.record.path), **own}
