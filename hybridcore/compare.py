"""Paired comparison of arms: same seeds, initial weights and batches, interleaved order (F73, F74, F78).

One control, `reshuffled`, has other batches on purpose.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from hybridcore.arms import ARMS, base_rate, check_arm, plan_arm, scale_rate
from hybridcore.config import HybridConfig
from hybridcore.errors import MetricsError
from hybridcore.events import Listener
from hybridcore.metrics import plain_json
from hybridcore.records import RunRecord, is_drawn, loss_gap, median_speedup, read_run, speedup
from hybridcore.runfiles import finished, require_same, require_unused, write_json
from hybridcore.runner import run_task, train
from hybridcore.tuning import CANDIDATES, tune

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = [
    "DEFAULT_ARMS",
    "ArmRow",
    "Comparison",
    "compare",
    "read_comparison",
    "summarise",
    "warm_up",
]

DEFAULT_ARMS = ("baseline", "hybrid", "reshuffled", "none", "frozen", "random", "lr-x2", "lr-x4", "lr-x10")
"""Arms that are run unless others are named."""

_READ_TWICE = ("baseline", "hybrid", "tuned")
"""Arms with rows of their own for their average, and for what they are read out by, where there is one."""

_RESAMPLES = 2000


@attrs.frozen
class ArmRow:
    """One arm over all its seeds; medians unless said otherwise.

    Attributes:
        arm: Its name; ``"<arm>, averaged"`` is the same runs read out by their averaged weights, and
            ``"<arm>, read out"`` by those that they chose.
        runs: Number of seeds.
        missed: Seeds in which the target was never reached; they count as infinite.
        final_loss: Final validation loss.
        loss_gap: Final validation loss above the paired baseline's.
        backward_passes: Backward passes.
        predicted_steps: Optimizer steps that predictions stood for.
        seconds_to_target: Training seconds to the target.
        cost_to_target: Cost to the target, in steps.
        speedup_wall: Ratio of training seconds to the paired baseline's.
        speedup_wall_low: The smallest over the seeds.
        speedup_wall_interval: 95 % bootstrap interval of the median.
        speedup_cost: Ratio of cost.
        speedup_cost_low: The smallest over the seeds.
        speedup_cost_interval: 95 % bootstrap interval of the median.
        speedup_bound: What the share of predicted steps allows at most.
        unresolved: Seeds in which the target lies before the first evaluation after the start, so that the
            time to it is no measurement but a line drawn from the start.
    """

    arm: str
    runs: int
    missed: int
    final_loss: float
    loss_gap: float
    backward_passes: float
    predicted_steps: float
    seconds_to_target: float
    cost_to_target: float
    speedup_wall: float
    speedup_wall_low: float
    speedup_wall_interval: tuple[float, float]
    speedup_cost: float
    speedup_cost_low: float
    speedup_cost_interval: tuple[float, float]
    speedup_bound: float
    unresolved: int = 0


@attrs.frozen
class Comparison:
    """Arms side by side.

    Attributes:
        directory: Folder of the runs.
        records: All runs.
        targets: Validation loss to reach, by seed: the final one of that seed's baseline, or the one that was
            set in advance.
        rows: One per arm, in the order of `hybridcore.arms.ARMS`.
        interrupted: The user stopped it; the rows hold what was measured.
        preset: Whether the target was set in advance.
    """

    directory: Path
    records: tuple[RunRecord, ...]
    targets: Mapping[int, float]
    rows: tuple[ArmRow, ...]
    interrupted: bool
    preset: bool = False

    def row(self, arm: str) -> ArmRow:
        """The row of an arm.

        Raises:
            KeyError: The arm was not run.
        """
        for row in self.rows:
            if row.arm == arm:
                return row
        raise KeyError(arm)


def compare(
    config: HybridConfig,
    *,
    out_dir: str | Path,
    arms: Sequence[str] = DEFAULT_ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Listener | None = None,
    registry: Registry | None = None,
    target: float | None = None,
    resume: bool = False,
) -> Comparison:
    """Run all arms with all seeds and write ``comparison.json`` beside the runs' own files.

    The order of the arms is reversed in every other seed, so that a slow drift of the machine favours none.
    A short run that is thrown away comes first, so that no arm pays for first-time work. The learning rate
    of ``tuned`` is swept with the first seed and kept for the others.

    Args:
        config: The configuration; its seed is replaced by each of `seeds`.
        out_dir: Folder for ``<arm>/seed-<n>/``.
        arms: Names of arms; the baseline is added where missing.
        seeds: Seeds of the runs.
        progress: Hears every event of every run.
        registry: Where names are looked up; loaded from the installed plugins if None.
        target: Validation loss to reach, set in advance; each seed's own baseline's final one if None.
        resume: Go on in a folder that holds runs: those that came to their end are kept, the others start
            anew.

    Raises:
        MetricsError: The folder holds runs that are not to be gone on with, or of another configuration.
        HybridCoreError: An arm is unknown, or a run failed.
    """
    if registry is None:
        from hybridcore.plugins import load_registry

        registry = load_registry(config.plugins.load, config.plugins.block)
    chosen = list(dict.fromkeys(["baseline", *arms]))
    for arm in chosen:
        check_arm(arm)
        if arm == "tuned" or arm.startswith("lr-x"):
            base_rate(config, registry)
    folder = Path(out_dir)
    if not resume:
        require_unused(folder)
    session = _Session(config, folder, registry, progress)
    try:
        warm_up(config, registry)
        for count, seed in enumerate(seeds):
            for arm in chosen if count % 2 == 0 else reversed(chosen):
                session.run(arm, seed)
    except KeyboardInterrupt:
        if not any(folder.rglob("metrics.jsonl")):
            raise
        return _finish(folder, target, interrupted=True)
    return _finish(folder, target)


class _Session:
    """Runs arms into the folders of one comparison; remembers the tuned rate."""

    def __init__(
        self, config: HybridConfig, folder: Path, registry: Registry, progress: Listener | None
    ) -> None:
        self._config, self._folder = config, folder
        self._registry, self._progress = registry, progress
        self._factor: float | None = None

    def run(self, arm: str, seed: int) -> None:
        """Run one arm with one seed.

        Raises:
            KeyboardInterrupt: The user stopped it; what was measured is on the disk.
        """
        config = attrs.evolve(self._config, run=attrs.evolve(self._config.run, seed=seed))
        where, registry, progress = self._folder / arm / f"seed-{seed}", self._registry, self._progress
        if self._keep(arm, config, where):
            return
        if arm == "tuned" and self._factor is not None:
            scaled = scale_rate(config, self._factor, registry)
            result = train(scaled, arm, False, where, progress, registry)
        elif arm == "tuned":
            tuning = tune(config, out_dir=where, registry=registry, progress=progress)
            self._factor, result = tuning.factor, tuning.best
        else:
            result = run_task(config, arm=arm, out_dir=where, progress=progress, registry=registry)
        if result.interrupted:
            raise KeyboardInterrupt

    def _keep(self, arm: str, config: HybridConfig, where: Path) -> bool:
        """Whether an earlier call finished this run; what it left unfinished is removed.

        Raises:
            MetricsError: It was trained with another configuration.
        """
        if not finished(where):
            if where.exists() and not (where / CANDIDATES).is_dir():  # a sweep keeps its finished rates
                shutil.rmtree(where)
            return False
        plan = plan_arm(config, arm, self._registry).config
        if arm == "tuned":
            if (where / "tuning.json").exists():
                self._factor = float(json.loads((where / "tuning.json").read_text("utf-8"))["factor"])
            plan = scale_rate(config, self._factor or 1.0, self._registry)
        require_same(plan, where)
        return True


def read_comparison(directory: str | Path) -> Comparison:
    """Read all runs below a folder and summarise them; a single run's folder will do.

    The target is the one that the comparison was made with.

    Raises:
        MetricsError: There is no run, one is damaged, or two have the same arm and seed, as in a sweep.
    """
    folder = Path(directory)
    files = [
        path
        for path in sorted(folder.rglob("metrics.jsonl"))
        if CANDIDATES not in path.relative_to(folder).parts
    ]
    if not files:
        raise MetricsError(
            "there is no run in this folder",
            where=str(folder),
            expected="at least one metrics.jsonl in it or below it",
            fix="give a folder that `hybridcore run` or `hybridcore compare` has written",
        )
    try:
        target = json.loads((folder / "comparison.json").read_text(encoding="utf-8")).get("target")
    except (OSError, ValueError):
        target = None
    records = [read_run(path) for path in files]
    seen: dict[tuple[str, int], RunRecord] = {}
    for record in records:
        other = seen.setdefault((record.arm, record.seed), record)
        if other is not record:
            raise MetricsError(
                f"two runs of arm {record.arm!r} have seed {record.seed}: this is not one comparison",
                where=str(folder),
                got=f"{other.path.parent} and {record.path.parent}",
                expected="one comparison, or one run",
                fix="give the folder of one comparison; what a sweep found is in its sweep.json",
            )
    return summarise(records, folder, target)


def summarise(records: Iterable[RunRecord], directory: str | Path, target: float | None = None) -> Comparison:
    """Rows per arm from runs; speed-ups stay NaN where a seed has no finished baseline.

    Targets are the baselines' own final losses, or the one given, and those of the plain weights in every
    row. Where averages of the weights were kept, those of the baseline, the hybrid and the tuned arm follow
    as rows of their own, and so does what these arms chose to be read out by.
    """
    runs = sorted(records, key=lambda r: (_rank(r.arm), r.arm, r.seed))
    baselines = {r.seed: r for r in runs if r.arm == "baseline" and not _interrupted(r)}
    targets = {seed: r.final_loss if target is None else target for seed, r in baselines.items()}
    groups: dict[str, list[RunRecord]] = {}
    for record in runs:
        if not _interrupted(record):
            groups.setdefault(record.arm, []).append(record)
    rows = []
    for arm, group in groups.items():
        rows.append(_row(arm, group, baselines, targets))
        if arm in _READ_TWICE:
            for found in ([r.averaged for r in group], [r.read_out for r in group]):
                others = [record for record in found if record is not None]
                if len(others) == len(group):
                    rows.append(_row(others[0].arm, others, baselines, targets))
    cut = any(map(_interrupted, runs))
    return Comparison(Path(directory), tuple(runs), targets, tuple(rows), cut, preset=target is not None)


def _interrupted(record: RunRecord) -> bool:
    return record.summary is None or bool(record.summary.get("interrupted"))


def _rank(arm: str) -> float:
    if arm in ARMS:
        return float(ARMS.index(arm))
    return ARMS.index("tuned") - 0.5 if arm.startswith("lr-x") else math.inf


def _row(
    arm: str,
    runs: Sequence[RunRecord],
    baselines: Mapping[int, RunRecord],
    targets: Mapping[int, float],
) -> ArmRow:
    paired = [run for run in runs if run.seed in baselines]
    times = [run.time_to_loss(targets[run.seed]) for run in paired]
    gains = [speedup(r.evaluations, baselines[r.seed].evaluations, targets[r.seed]) for r in paired]
    walls = [gain.wall for gain in gains if gain is not None]
    costs = [gain.cost for gain in gains if gain is not None]
    gaps = [run.final_loss - baselines[run.seed].final_loss for run in paired]
    return ArmRow(
        arm=arm,
        runs=len(runs),
        missed=sum(not time.reached for time in times),
        final_loss=_median([run.final_loss for run in runs]),
        loss_gap=_median(gaps),
        backward_passes=_median([_count(run, "backward_passes") for run in runs]),
        predicted_steps=_median([_count(run, "predicted_steps") for run in runs]),
        seconds_to_target=_median([time.seconds for time in times]),
        cost_to_target=_median([time.cost for time in times]),
        speedup_wall=median_speedup(walls),
        speedup_wall_low=min(walls, default=math.nan),
        speedup_wall_interval=_interval(walls),
        speedup_cost=median_speedup(costs),
        speedup_cost_low=min(costs, default=math.nan),
        speedup_cost_interval=_interval(costs),
        speedup_bound=_median([_count(run, "speedup_bound") for run in runs]),
        unresolved=sum(is_drawn(run.evaluations, time) for run, time in zip(paired, times, strict=True)),
    )


def _count(run: RunRecord, key: str) -> float:
    value = (run.summary or {}).get(key)
    return math.nan if value is None else float(value)


def _median(values: Sequence[float]) -> float:
    if any(math.isnan(value) for value in values):
        return math.nan
    return float(median(values)) if values else math.nan


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median; from fewer than three values there is none."""
    if len(values) < 3:
        return (math.nan, math.nan)
    rng = np.random.default_rng(0)
    picked = rng.choice(np.asarray(values), size=(_RESAMPLES, len(values)))
    with np.errstate(divide="ignore"):
        medians = 1.0 / np.median(1.0 / picked, axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return (float(low), float(high))


def warm_up(config: HybridConfig, registry: Registry) -> None:
    """First-time work of the framework, outside every measurement."""
    short = attrs.evolve(config, run=attrs.evolve(config.run, steps=3))
    for arm in ("baseline", "hybrid"):
        with tempfile.TemporaryDirectory() as folder:
            if run_task(short, arm=arm, out_dir=folder, registry=registry).interrupted:
                raise KeyboardInterrupt


def _finish(folder: Path, target: float | None, interrupted: bool = False) -> Comparison:
    write_json(folder / "comparison.json", {"target": target})
    result = read_comparison(folder)
    result = attrs.evolve(result, interrupted=interrupted or result.interrupted)
    baselines = {r.seed: r for r in result.records if r.arm == "baseline" and not _interrupted(r)}
    runs = []
    for record in result.records:
        base = baselines.get(record.seed)
        runs.append(_paired_summary(record, base, target))
        write_json(record.path.parent / "summary.json", runs[-1])
    write_json(
        folder / "comparison.json",
        {
            "target": target,
            "targets": result.targets,
            "interrupted": result.interrupted,
            "rows": [attrs.asdict(row) for row in result.rows],
            "runs": [
                {**run, "directory": record.path.parent.relative_to(folder).as_posix()}
                for run, record in zip(runs, result.records, strict=True)
            ],
            "config": result.records[0].start.get("config"),
        },
    )
    return result


def _paired_summary(record: RunRecord, base: RunRecord | None, target: float | None) -> dict[str, Any]:
    """A run's summary, completed by what only the paired baseline tells."""
    baseline = None if base is None else base.evaluations
    gain = speedup(record.evaluations, baseline, target)
    goal = target if base is None or target is not None else base.final_loss
    reached = None if goal is None else record.time_to_loss(goal)
    summary = {key: value for key, value in (record.summary or {}).items() if key != "event"}
    completed: dict[str, Any] = plain_json(
        {
            "arm": record.arm,
            "seed": record.seed,
            **summary,
            "target": goal,
            "seconds_to_target": None if reached is None else reached.seconds,
            "cost_to_target": None if reached is None else reached.cost,
            "speedup": None if gain is None else gain.wall,
            "speedup_cost": None if gain is None else gain.cost,
            "loss_gap": loss_gap(record.evaluations, baseline),
        }
    )
    return completed
