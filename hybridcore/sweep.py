"""Parameter sweeps: every combination of some settings with the same seeds, resumable (F75, F76)."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hybridcore.compare import warm_up
from hybridcore.errors import DivergenceError
from hybridcore.events import Listener
from hybridcore.grid import Point, baseline_point, parse_grid, plan_sweep
from hybridcore.runfiles import write_json
from hybridcore.runner import run_task
from hybridcore.sweep_results import (
    COUNTS,
    Sweep,
    SweepRun,
    pair,
    parse_run,
    plain_run,
    read_sweep,
    summarise_sweep,
    write_sweep,
)

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = [
    "COUNTS",
    "Point",
    "Sweep",
    "SweepRun",
    "parse_grid",
    "plan_sweep",
    "read_sweep",
    "summarise_sweep",
    "sweep",
]

_FINISHED = "sweep-run.json"


@attrs.frozen
class _Task:
    """A run that is to be made: a point, or the baseline of one.

    Attributes:
        point: What is trained.
        arm: As which arm.
        seed: With which seed.
        base: Folder of the paired baseline; empty without.
    """

    point: Point
    arm: str
    seed: int
    base: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Tells it from all others."""
        return self.point.folder, self.seed


def sweep(
    points: Sequence[Point],
    *,
    out_dir: str | Path,
    seeds: Sequence[int] = (0,),
    arm: str = "hybrid",
    baseline: bool = False,
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
        baseline: Train the plain loop with the same seeds too, once for all points that differ in nothing
            that it reads; gives speed-ups.
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
    bases = {point.folder: baseline_point(point) for point in points} if baseline else {}
    plan = _plan_runs(points, seeds, arm, bases)
    done: dict[tuple[str, int], SweepRun] = {}
    for count, task in enumerate(plan, 1):
        run = _finished(task, folder)
        if run is None:
            announce(f"{count}/{len(plan)} {task.point.words}".rstrip())
            try:
                if not warm:
                    with contextlib.suppress(DivergenceError):
                        warm_up(task.point.config, registry)
                    warm = True
                run = _train(task, folder, progress, registry)
            except KeyboardInterrupt:
                run = None
        if run is not None:
            done[task.key] = pair(run, done[task.base, task.seed], folder) if task.base else run
        result = Sweep(
            folder,
            arm,
            _in_order([point.folder for point in points], seeds, done),
            run is None,
            _in_order(dict.fromkeys(base.folder for base in bases.values()), seeds, done),
            points[0].config.task.name,
            points[0].config.run.framework,
        )
        write_sweep(result, (*points, *bases.values()), seeds)
        if result.interrupted:
            break
    return result


def _plan_runs(
    points: Sequence[Point], seeds: Sequence[int], arm: str, bases: dict[str, Point]
) -> list[_Task]:
    """The runs in their order: each baseline just before the first point that is paired with it.

    Args:
        points: The points.
        seeds: The seeds.
        arm: What is trained.
        bases: Baseline by a point's folder.
    """
    plan: dict[tuple[str, int], _Task] = {}
    for count, seed in enumerate(seeds):
        for point in points if count % 2 == 0 else reversed(points):
            base = bases.get(point.folder)
            if base is not None:
                plan.setdefault((base.folder, seed), _Task(base, "baseline", seed))
            task = _Task(point, arm, seed, "" if base is None else base.folder)
            plan[task.key] = task
    return list(plan.values())


def _in_order(
    folders: Sequence[str] | dict[str, Any], seeds: Sequence[int], done: dict[tuple[str, int], SweepRun]
) -> tuple[SweepRun, ...]:
    return tuple(done[folder, seed] for folder in folders for seed in seeds if (folder, seed) in done)


def _place(task: _Task) -> str:
    """Folder of a run, relative to the sweep's."""
    return f"{task.point.folder}/seed-{task.seed}"


def _train(task: _Task, folder: Path, progress: Listener | None, registry: Registry) -> SweepRun | None:
    """One run from its start; None where the user stopped it."""
    point, seed, relative = task.point, task.seed, _place(task)
    where = folder / relative
    if where.exists():
        shutil.rmtree(where)  # what an interrupted run left
    config = attrs.evolve(point.config, run=attrs.evolve(point.config.run, seed=seed))
    try:
        result = run_task(config, arm=task.arm, out_dir=where, progress=progress, registry=registry)
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
    write_json(where / _FINISHED, plain_run(run))
    return run


def _finished(task: _Task, folder: Path) -> SweepRun | None:
    """What an earlier call recorded; its file is the last one that a run writes."""
    relative = _place(task)
    try:
        data = json.loads((folder / relative / _FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    run = parse_run(data, settings=task.point.settings, seed=task.seed, directory=relative)
    return None if run is None else attrs.evolve(run, reused=True)  # a damaged one is repeated
