"""What a sweep found: its runs and their baselines, written, read and summarised (F47, F76)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NoReturn

import attrs

from hybridcore.configfile import config_to_dict
from hybridcore.errors import MetricsError
from hybridcore.grid import Point
from hybridcore.records import is_drawn, read_run, speedup, time_to_loss
from hybridcore.runfiles import write_json

__all__ = ["COUNTS", "Sweep", "SweepRun", "pair", "read_sweep", "summarise_sweep", "write_sweep"]

SCHEMA = 1

COUNTS = (
    "real_steps",
    "backward_passes",
    "predicted_steps",
    "jumps",
    "refused",
    "verdicts_kept",
    "verdicts_failed",
    "rollbacks",
    "skipped",
    "divergences",
    "probes",
)
"""Entries of a run's summary that are its counts; a plain loop lacks some."""

_NUMBERS = ("final_loss", "seconds", "cost", "speedup", "speedup_cost")
_BETWEEN_CALLS = ("reused", "speedup", "speedup_cost", "baseline", "drawn")
"""What a run's own file leaves out: it depends on the call, or on another run."""


@attrs.frozen
class SweepRun:
    """One run of a sweep.

    Attributes:
        settings: Values by dotted key.
        seed: Its seed.
        directory: Its folder, relative to the sweep's.
        final_loss: Final validation loss; infinite where it diverged.
        seconds: Training seconds; NaN where it diverged.
        cost: Cost in steps; NaN where it diverged.
        counts: Those of `COUNTS` that the run has.
        error: Why it was aborted; None where it was not.
        reused: It had been finished by an earlier call.
        speedup: Training seconds of the paired baseline over its own, to the baseline's final validation
            loss; 0 where it never got there, NaN without a baseline.
        speedup_cost: The same in cost.
        baseline: Folder of the paired baseline, relative to the sweep's; None without.
        drawn: The baseline's final loss was reached before the first evaluation after the start, so that the
            time to it is a line drawn from the start.
    """

    settings: Mapping[str, Any]
    seed: int
    directory: str
    final_loss: float
    seconds: float
    cost: float
    counts: Mapping[str, float]
    error: str | None = None
    reused: bool = False
    speedup: float = math.nan
    speedup_cost: float = math.nan
    baseline: str | None = None
    drawn: bool = False


@attrs.frozen
class Sweep:
    """All runs of a sweep.

    Attributes:
        directory: Folder that holds ``sweep.json`` and the runs.
        arm: Arm that was trained.
        runs: In the order of the grid, then of the seeds.
        interrupted: The user stopped it; the same call goes on where it stopped.
        baselines: The plain loop's runs that `runs` are paired with, one for each of its own settings and
            each seed; none where they were not asked for.
        task: Name of the first point's task.
        framework: Framework of the first point.
    """

    directory: Path
    arm: str
    runs: tuple[SweepRun, ...]
    interrupted: bool
    baselines: tuple[SweepRun, ...] = ()
    task: str = ""
    framework: str = ""


def pair(run: SweepRun, base: SweepRun, folder: Path) -> SweepRun:
    """A run with its speed-up over the baseline of the same seed; a baseline that diverged gives none."""
    if base.error is not None:
        return attrs.evolve(run, baseline=base.directory)
    if run.error is not None:
        return attrs.evolve(run, speedup=0.0, speedup_cost=0.0, baseline=base.directory)
    curve, other = (read_run(folder / each.directory).evaluations for each in (run, base))
    gain = speedup(curve, other)
    if gain is None:
        return attrs.evolve(run, baseline=base.directory)
    drawn = is_drawn(curve, time_to_loss(curve, gain.target))
    return attrs.evolve(run, speedup=gain.wall, speedup_cost=gain.cost, baseline=base.directory, drawn=drawn)


def plain_run(run: SweepRun) -> dict[str, Any]:
    """A run as its own file holds it."""
    return attrs.asdict(run, filter=lambda attribute, _: attribute.name not in _BETWEEN_CALLS)


def write_sweep(result: Sweep, points: Sequence[Point], seeds: Sequence[int]) -> None:
    """Write ``sweep.json``.

    Args:
        result: What was found so far.
        points: All points, those of the baselines too.
        seeds: Seeds of the sweep.

    Raises:
        MetricsError: It cannot be written.
    """
    configs = {point.folder: config_to_dict(point.config) for point in points}

    def listed(runs: Sequence[SweepRun]) -> list[dict[str, Any]]:
        entries = []
        for run in runs:
            config = configs[run.directory.partition("/")[0]]
            config = {**config, "run": {**config["run"], "seed": run.seed}}
            whole = attrs.asdict(run, filter=lambda attribute, _: attribute.name != "reused")
            entries.append({**whole, "config": config})
        return entries

    write_json(
        result.directory / "sweep.json",
        {
            "schema": SCHEMA,
            "task": result.task,
            "framework": result.framework,
            "arm": result.arm,
            "seeds": list(seeds),
            "interrupted": result.interrupted,
            "points": summarise_sweep(result),
            "runs": listed(result.runs),
            "baselines": listed(result.baselines),
        },
    )


def read_sweep(directory: str | Path) -> Sweep:
    """Read ``sweep.json`` of a folder.

    Raises:
        MetricsError: It is missing, damaged, or of another schema.
    """
    file = Path(directory) / "sweep.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        _unreadable(file, error.strerror or str(error))
    except (ValueError, RecursionError) as error:
        _unreadable(file, f"no JSON: {error}")
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        _unreadable(file, f"not of schema {SCHEMA}")
    groups = []
    for name in ("runs", "baselines"):
        entries = data.get(name, [])
        runs = [parse_run(entry) for entry in entries] if isinstance(entries, list) else [None]
        found = [run for run in runs if run is not None]
        if len(found) < len(runs):
            _unreadable(file, f"an entry of {name!r} is damaged")
        groups.append(tuple(found))
    return Sweep(
        directory=file.parent,
        arm=str(data.get("arm", "hybrid")),
        runs=groups[0],
        interrupted=bool(data.get("interrupted")),
        baselines=groups[1],
        task=str(data.get("task", "")),
        framework=str(data.get("framework", "")),
    )


def parse_run(data: object, **changes: Any) -> SweepRun | None:
    """A run from plain data; None where something of it is missing or of a wrong kind.

    Args:
        data: What `plain_run` or ``sweep.json`` holds.
        changes: Fields that are known otherwise.
    """
    if not isinstance(data, Mapping):
        return None
    known = {**data, **changes}
    settings, seed, place = (known.get(name) for name in ("settings", "seed", "directory"))
    counts, error, base = (known.get(name) for name in ("counts", "error", "baseline"))
    if not (isinstance(settings, Mapping) and type(seed) is int and isinstance(place, str)):
        return None
    if not (isinstance(counts, Mapping) and isinstance(error, str | None) and isinstance(base, str | None)):
        return None
    present = all(name in known for name in ("final_loss", "seconds", "cost", "error"))
    numbers = {name: known.get(name) for name in _NUMBERS}
    if not present or not all(map(_is_number, (*numbers.values(), *counts.values()))):
        return None
    loss = numbers.pop("final_loss")
    filled: dict[str, Any] = {
        name: math.nan if value is None else float(value) for name, value in numbers.items()
    }
    return SweepRun(
        settings=settings,
        seed=seed,
        directory=place,
        final_loss=math.inf if loss is None else float(loss),
        counts=dict(counts),
        error=error,
        baseline=base,
        drawn=known.get("drawn") is True,
        **filled,
    )


def _is_number(value: object) -> bool:
    """Whether it is null, or a number that a float can hold; JSON's integers have no end."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value is None
    return abs(value) <= sys.float_info.max


def _unreadable(file: Path, why: str) -> NoReturn:
    raise MetricsError(
        "the results of a sweep cannot be read",
        where=str(file),
        got=why,
        expected="a file that `hybridcore sweep` has written",
        fix="call `hybridcore sweep` again with this folder as --out: finished runs are kept",
    )


def summarise_sweep(result: Sweep) -> list[dict[str, Any]]:
    """Means over the seeds, one entry per point, the lowest final loss first.

    ``final_loss_error`` is the standard error of the mean, NaN for a single seed. A point with a run that
    diverged has an infinite loss. Speed-ups are medians over the seeds, NaN without a baseline.
    ``baseline_loss`` is the mean of the paired baselines, and ``drawn`` counts runs whose time to its loss is
    drawn, not measured.
    """
    groups: dict[str, list[SweepRun]] = {}
    for run in result.runs:
        groups.setdefault(run.directory.rpartition("/")[0], []).append(run)
    bases = {run.directory: run for run in result.baselines}
    rows = []
    for runs in groups.values():
        losses = [run.final_loss for run in runs]
        paired = [bases[run.baseline].final_loss for run in runs if run.baseline in bases]
        rows.append(
            {
                "settings": dict(runs[0].settings),
                "runs": len(runs),
                "diverged": sum(run.error is not None for run in runs),
                "final_loss": fmean(losses),
                "final_loss_error": standard_error(losses),
                "baseline_loss": fmean(paired) if len(paired) == len(runs) else math.nan,
                "seconds": fmean(run.seconds for run in runs),
                "cost": fmean(run.cost for run in runs),
                "speedup": _median([run.speedup for run in runs]),
                "speedup_cost": _median([run.speedup_cost for run in runs]),
                "drawn": sum(run.drawn for run in runs),
                "counts": {
                    name: fmean(float(run.counts[name]) for run in runs)
                    for name in COUNTS
                    if all(name in run.counts for run in runs)
                },
            }
        )
    return sorted(rows, key=lambda row: float(row["final_loss"]))


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; NaN for fewer than two values, or where one is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return stdev(values) / math.sqrt(len(values))


def _median(values: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else float(median(values))
