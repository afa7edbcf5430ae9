"""The report as plain data (F52, F90)."""

from __future__ import annotations

from pathlib import Path

import attrs

from hybridcore.compare import Comparison
from hybridcore.report.overhead import overheads
from hybridcore.report.phases import phase_spans
from hybridcore.runfiles import write_json

__all__ = ["save_data"]


def save_data(comparison: Comparison, path: str | Path) -> Path:
    """Write what the page shows as JSON: targets, arms, overhead, and each run's phases and verdicts."""
    file = Path(path)
    write_json(
        file,
        {
            "targets": comparison.targets,
            "interrupted": comparison.interrupted,
            "rows": [attrs.asdict(row) for row in comparison.rows],
            "overhead": [attrs.asdict(entry) for entry in overheads(comparison)],
            "runs": [
                {
                    "arm": record.arm,
                    "seed": record.seed,
                    "evaluations": [attrs.asdict(e) for e in record.evaluations],
                    "phases": phase_spans(record),
                    "verdicts": [{k: v for k, v in d.items() if k != "event"} for d in record.verdicts],
                    "summary": record.summary,
                }
                for record in comparison.records
            ],
        },
    )
    return file
