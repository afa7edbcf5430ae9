"""The baseline with its learning rate tuned: what a hybrid run has to be compared with (F74)."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from hybridcore.arms import base_rate, scale_rate
from hybridcore.config import HybridConfig
from hybridcore.events import Listener
from hybridcore.records import Evaluation, read_run
from hybridcore.runfiles import finished, require_same, write_json
from hybridcore.runner import train
from hybridcore.training import RunResult

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["CANDIDATES", "FACTORS", "Tuning", "tune"]

FACTORS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Multiples of the configured learning rate that are tried first."""

CANDIDATES = "candidates"
"""Sub-folder that holds the runs of a sweep."""

_LARGEST = 1e5


@attrs.frozen
class Tuning:
    """Result of a sweep over learning rates.

    Attributes:
        factor: Best multiple of the configured learning rate.
        rate: The learning rate that it gives.
        losses: Final validation loss by factor; infinite where the run diverged.
        best: The best run, its files copied to the sweep's own folder.
    """

    factor: float
    rate: float
    losses: dict[float, float]
    best: RunResult


def tune(
    config: HybridConfig,
    *,
    out_dir: str | Path,
    registry: Registry,
    progress: Listener | None = None,
    baseline: tuple[Evaluation, ...] | None = None,
    factors: tuple[float, ...] = FACTORS,
) -> Tuning:
    """Train the baseline at several learning rates and keep the one with the best final validation loss.

    While the best rate is the largest tried, a three times larger one is tried too, so that the best never
    lies at the edge. Writes ``tuning.json`` beside the files of the best run once the sweep is complete;
    rates that an earlier, interrupted call finished in the same folder are not trained again.

    Args:
        config: The configuration.
        out_dir: Folder for the best run; the others lie in its sub-folder ``candidates``.
        registry: Where names are looked up.
        progress: Hears every event of every run.
        baseline: Evaluations of the paired baseline.
        factors: Multiples of the configured learning rate, ascending.

    Raises:
        ConfigError: The task has no option `learning_rate`.
        MetricsError: The folder holds a finished rate of another configuration.
    """
    folder, runs = Path(out_dir), dict[float, RunResult]()
    waiting = list(factors)
    while waiting:
        factor = waiting.pop(0)
        changed = scale_rate(config, factor, registry)
        where = folder / CANDIDATES / f"x{factor:g}"
        runs[factor] = _kept(changed, where) or train(
            changed, "tuned", False, where, progress, registry, baseline
        )
        if runs[factor].interrupted:
            break
        best = min(runs, key=lambda f: _score(runs[f]))
        if not waiting and best == factor and factor < _LARGEST:
            waiting.append(3 * factor)
    best = min(runs, key=lambda f: _score(runs[f]))
    rate = base_rate(config, registry) * best
    losses = {factor: run.final_loss for factor, run in runs.items()}
    if any(run.interrupted for run in runs.values()):
        return Tuning(best, rate, losses, _interrupted(runs[best]))
    write_json(folder / "tuning.json", {"factor": best, "learning_rate": rate, "losses": losses})
    for name in ("config.toml", "metrics.jsonl", "summary.json"):  # the last one says that all are there
        shutil.copyfile(runs[best].directory / name, folder / name)
    return Tuning(best, rate, losses, attrs.evolve(runs[best], directory=folder))


def _kept(config: HybridConfig, where: Path) -> RunResult | None:
    """What an earlier call finished; what it left unfinished is removed."""
    if not finished(where):
        if where.exists():
            shutil.rmtree(where)
        return None
    require_same(config, where)
    record = read_run(where)
    summary = {key: value for key, value in (record.summary or {}).items() if key != "event"}
    return RunResult(record.arm, record.seed, where, record.evaluations, summary, interrupted=False)


def _interrupted(run: RunResult) -> RunResult:
    """The best run so far of a sweep that was not completed."""
    return attrs.evolve(run, interrupted=True, summary={**run.summary, "interrupted": True})


def _score(run: RunResult) -> float:
    """Final loss, where an unfinished run counts as the worst."""
    return math.inf if run.interrupted else run.final_loss
