"""Parameter sweeps: every combination of some settings with the same seeds, resumable (F75, F76)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import attrs

from hybridcore.compare import warm_up
from hybridcore.components import check_config
from hybridcore.config import HybridConfig
from hybridcore.configfile import apply_overrides, config_to_dict, parse_value, set_value
from hybridcore.errors import ConfigError, ConfigProblem, DivergenceError
from hybridcore.events import Listener
from hybridcore.runfiles import write_json
from hybridcore.runner import run_task

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["COUNTS", "Point", "Sweep", "SweepRun", "parse_grid", "plan_sweep", "summarise_sweep", "sweep"]

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

_FINISHED = "sweep-run.json"
_UNSAFE = re.compile(r"[^A-Za-z0-9._=-]+")


@attrs.frozen
class Point:
    """One combination of settings.

    Attributes:
        settings: Values by dotted key.
        config: The checked configuration.
        folder: Name of its folder; depends on the whole configuration and on the arm, but not on the seed.
    """

    settings: Mapping[str, Any]
    config: HybridConfig
    folder: str


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


@attrs.frozen
class Sweep:
    """All runs of a sweep.

    Attributes:
        directory: Folder that holds ``sweep.json`` and the runs.
        arm: Arm that was trained.
        runs: In the order of the grid, then of the seeds.
        interrupted: The user stopped it; the same call goes on where it stopped.
    """

    directory: Path
    arm: str
    runs: tuple[SweepRun, ...]
    interrupted: bool


def parse_grid(items: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Values by dotted key from ``"dotted.key=value,value"``; values are TOML, bare words strings.

    Raises:
        ConfigError: An item has no key or value, or a key or value comes twice.

    Example:
        >>> parse_grid(["task.learning_rate=1e-3,1e-2", "predictor.name=drift,last-update"])
        {'task.learning_rate': (0.001, 0.01), 'predictor.name': ('drift', 'last-update')}
    """
    grid: dict[str, tuple[Any, ...]] = {}
    problems = []
    for item in items:
        key, equals, text = item.partition("=")
        key, values = key.strip(), _values(text)
        if not equals or not key or not values:
            expected = "dotted.key=value,value"
            problems.append(ConfigProblem(key or item, "no grid", got=item, expected=expected))
        elif key in grid:
            problems.append(ConfigProblem(key, "in the grid twice", hint="name all values in one --grid"))
        elif any(value in values[:place] for place, value in enumerate(values)):
            problems.append(ConfigProblem(key, "a value comes twice", got=text, expected="different values"))
        elif key == "run.seed":
            problems.append(ConfigProblem(key, "seeds are no setting to compare", hint="use --seeds"))
        else:
            grid[key] = values
    if not grid and not problems:
        problems.append(ConfigProblem("--grid", "no setting is varied", expected="dotted.key=value,value"))
    if problems:
        raise ConfigError(problems, source="grid", fix="correct the option --grid")
    return grid


def _values(text: str) -> tuple[Any, ...]:
    try:
        return tuple(tomllib.loads(f"values = [{text}]")["values"])
    except tomllib.TOMLDecodeError:
        return tuple(parse_value(word.strip()) for word in text.split(",") if word.strip())


def plan_sweep(
    data: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    registry: Registry,
    *,
    arm: str = "hybrid",
    origin: str = "configuration",
) -> tuple[Point, ...]:
    """Check every combination before anything is trained.

    Args:
        data: Plain data shaped like the TOML file.
        grid: Values by dotted key.
        registry: Where names are looked up.
        arm: Arm that will be trained.
        origin: Where the data came from; named in errors.

    Raises:
        ConfigError: A key is unknown or a value wrong; tells every mistake of the first bad combination.
    """
    points = []
    for combination in itertools.product(*grid.values()):
        settings = dict(zip(grid, combination, strict=True))
        changed = apply_overrides(data, ())
        for key, value in settings.items():
            set_value(changed, key, value)
        config = check_config(changed, registry, origin=origin)
        points.append(Point(settings, config, _folder(settings, config, arm)))
    return tuple(points)


def _folder(settings: Mapping[str, Any], config: HybridConfig, arm: str) -> str:
    """Readable, and different for whatever changes a run."""
    table = config_to_dict(config)
    for section, key in (("run", "seed"), ("run", "directory"), ("metrics", "trace")):
        table[section].pop(key)
    digest = hashlib.sha256(json.dumps([arm, table], sort_keys=True).encode()).hexdigest()[:10]
    words = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())
    return f"{_UNSAFE.sub('_', words)[:80]}-{digest}"


def sweep(
    points: Sequence[Point],
    *,
    out_dir: str | Path,
    seeds: Sequence[int] = (0,),
    arm: str = "hybrid",
    progress: Listener | None = None,
    registry: Registry | None = None,
    announce: Callable[[str], None] = lambda label: None,
) -> Sweep:
    """Train every point with every seed and write ``sweep.json``.

    A run that an earlier call finished in the same folder is not trained again; one that was interrupted
    starts anew. The order of the points is reversed with every other seed, so that a slow drift of the
    machine favours none, and a short run that is thrown away comes first. ``sweep.json`` is written after
    every run.

    Args:
        points: What `plan_sweep` gave.
        out_dir: Folder for ``sweep.json`` and ``<point>/seed-<n>/``.
        seeds: Seeds, the same for all points.
        arm: What is trained.
        progress: Hears every event of every run.
        registry: Where names are looked up; loaded from the installed plugins if None.
        announce: Told before each run which it is, such as ``"3/8 learning_rate=0.01"``.

    Raises:
        HybridCoreError: A run failed for another reason than divergence, which is recorded.
    """
    if registry is None:
        from hybridcore.plugins import load_registry

        registry = load_registry(points[0].config.plugins.load, points[0].config.plugins.block)
    folder, warm = Path(out_dir), False
    done: dict[tuple[int, int], SweepRun] = {}
    plan = [
        (place, seed)
        for count, seed in enumerate(seeds)
        for place in (range(len(points)) if count % 2 == 0 else reversed(range(len(points))))
    ]
    for count, (place, seed) in enumerate(plan, 1):
        point = points[place]
        where = folder / point.folder / f"seed-{seed}"
        run = _finished(point, seed, where, folder)
        if run is None:
            words = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.settings.items())
            announce(f"{count}/{len(plan)} {words}")
            try:
                if not warm:
                    with contextlib.suppress(DivergenceError):
                        warm_up(point.config, registry)
                    warm = True
                run = _train(point, seed, where, folder, arm, progress, registry)
            except KeyboardInterrupt:
                run = None
        if run is not None:
            done[place, seed] = run
        result = Sweep(folder, arm, tuple(done[key] for key in sorted(done)), interrupted=run is None)
        _write(result, points, seeds)
        if result.interrupted:
            break
    return result


def _train(
    point: Point,
    seed: int,
    where: Path,
    folder: Path,
    arm: str,
    progress: Listener | None,
    registry: Registry,
) -> SweepRun | None:
    """One run from its start; None where the user stopped it."""
    if where.exists():
        shutil.rmtree(where)  # what an interrupted run left
    config = attrs.evolve(point.config, run=attrs.evolve(point.config.run, seed=seed))
    relative = where.relative_to(folder).as_posix()
    try:
        result = run_task(config, arm=arm, out_dir=where, progress=progress, registry=registry)
    except DivergenceError as error:
        run = SweepRun(point.settings, seed, relative, math.inf, math.nan, math.nan, {}, error=error.what)
    else:
        if result.interrupted:
            return None
        summary = result.summary
        counts = {name: summary[name] for name in COUNTS if summary.get(name) is not None}
        run = SweepRun(
            point.settings,
            seed,
            relative,
            result.final_loss,
            float(summary["elapsed"]),
            float(summary["cost"]),
            counts,
        )
    write_json(where / _FINISHED, _plain(run))
    return run


def _finished(point: Point, seed: int, where: Path, folder: Path) -> SweepRun | None:
    """What an earlier call recorded; its file is the last one that a run writes."""
    try:
        data = json.loads((where / _FINISHED).read_text(encoding="utf-8"))
        loss, seconds, cost = (data[name] for name in ("final_loss", "seconds", "cost"))
        counts, error = data["counts"], data["error"]
        sound = all(_is_number(value) for value in (loss, seconds, cost, *counts.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not sound or not isinstance(error, str | None):
        return None  # no such file is written: the run is repeated
    return SweepRun(
        point.settings,
        seed,
        where.relative_to(folder).as_posix(),
        math.inf if loss is None else loss,
        math.nan if seconds is None else seconds,
        math.nan if cost is None else cost,
        counts,
        error,
        reused=True,
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value is None
    return abs(value) <= sys.float_info.max  # JSON's integers have no end


def _plain(run: SweepRun) -> dict[str, Any]:
    return attrs.asdict(run, filter=lambda attribute, _: attribute.name != "reused")


def _write(result: Sweep, points: Sequence[Point], seeds: Sequence[int]) -> None:
    configs = {point.folder: config_to_dict(point.config) for point in points}
    write_json(
        result.directory / "sweep.json",
        {
            "schema": SCHEMA,
            "arm": result.arm,
            "seeds": list(seeds),
            "interrupted": result.interrupted,
            "points": summarise_sweep(result),
            "runs": [
                {**_plain(run), "config": _with_seed(configs[run.directory.partition("/")[0]], run.seed)}
                for run in result.runs
            ],
        },
    )


def _with_seed(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {**config, "run": {**config["run"], "seed": seed}}


def summarise_sweep(result: Sweep) -> list[dict[str, Any]]:
    """Means over the seeds, one entry per point, the lowest final loss first.

    ``final_loss_error`` is the standard error of the mean, NaN for a single seed. A point with a run that
    diverged has an infinite loss.
    """
    groups: dict[str, list[SweepRun]] = {}
    for run in result.runs:
        groups.setdefault(run.directory.rpartition("/")[0], []).append(run)
    rows = []
    for runs in groups.values():
        losses = [run.final_loss for run in runs]
        sound = len(runs) > 1 and all(map(math.isfinite, losses))
        rows.append(
            {
                "settings": dict(runs[0].settings),
                "runs": len(runs),
                "diverged": sum(run.error is not None for run in runs),
                "final_loss": fmean(losses),
                "final_loss_error": stdev(losses) / math.sqrt(len(runs)) if sound else math.nan,
                "seconds": fmean(run.seconds for run in runs),
                "cost": fmean(run.cost for run in runs),
                "counts": {
                    name: fmean(float(run.counts[name]) for run in runs)
                    for name in COUNTS
                    if all(name in run.counts for run in runs)
                },
            }
        )
    return sorted(rows, key=lambda row: float(row["final_loss"]))
