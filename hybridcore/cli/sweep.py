"""`hybridcore sweep`: every combination of some settings, with the same seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from hybridcore.arms import check_arm
from hybridcore.cli.common import (
    errors,
    output,
    read_source,
    run_folder,
    say_interrupted,
    set_up_logging,
)
from hybridcore.cli.progress import Progress
from hybridcore.errors import ConfigError, ConfigProblem
from hybridcore.report.table import number
from hybridcore.sweep import Sweep, parse_grid, plan_sweep, summarise_sweep
from hybridcore.sweep import sweep as run_sweep

__all__ = ["sweep"]

_COUNTS = ("backward_passes", "predicted_steps", "verdicts_kept", "verdicts_failed", "divergences")


def sweep(
    config: str,
    /,
    *,
    grid: Annotated[list[str], Parameter(negative=())],
    seeds: int = 1,
    arm: str = "hybrid",
    framework: str | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    trace: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
) -> int:
    """Train every combination of some settings with the same seeds; best final loss first.

    Args:
        config: TOML file, or the name of a preset.
        grid: Values of a setting, dotted.key=value,value; may be given again for further settings.
        seeds: Number of seeds, counted up from run.seed.
        arm: What to train: hybrid, baseline, a control (none, frozen, random), or lr-xN.
        framework: Use this framework instead of run.framework.
        set_: Setting dotted.key=value that replaces the file's; may be given again.
        trace: Log every decision with its reason.
        out: Folder for the runs; runs that are finished there are not trained again.
    """
    if seeds < 1:
        problem = ConfigProblem("--seeds", "out of range", got=seeds, expected="an integer of at least 1")
        raise ConfigError([problem], source="command line", fix="correct the option")
    check_arm(arm)
    if arm == "tuned":
        problem = ConfigProblem("--arm", "is a sweep itself", got=arm, hint="--grid task.learning_rate=...")
        raise ConfigError([problem], source="command line", fix="sweep the rate with --arm baseline")
    values = parse_grid(grid)
    data, registry = read_source(config, set_ or (), framework, trace)
    points = plan_sweep(data, values, registry, arm=arm, origin=config)
    first = points[0].config
    folder = run_folder(first, "sweep", out)
    set_up_logging(trace)
    with Progress(errors()) as progress:

        def announce(label: str) -> None:
            progress.prefix = label

        result = run_sweep(
            points,
            out_dir=folder,
            seeds=range(first.run.seed, first.run.seed + seeds),
            arm=arm,
            progress=progress,
            registry=registry,
            announce=announce,
        )
    console = output()
    console.print(_table(result, list(values)))
    reused = sum(run.reused for run in result.runs)
    kept = f", {reused} of {len(result.runs)} runs from before" if reused else ""
    console.print(f"recorded in {folder / 'sweep.json'}{kept}", highlight=False, soft_wrap=True, markup=False)
    if not result.interrupted:
        return 0
    say_interrupted(len(result.runs), seeds * len(points), f"the same command with --out {folder} goes on")
    return 130


def _table(result: Sweep, keys: list[str]) -> Table:
    table = Table(
        title=f"Sweep of {result.arm}, lowest final validation loss first",
        caption="means over seeds ± standard error",
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        box=None,
    )
    headings = ("seeds", "final loss", "seconds", "cost", *(name.replace("_", " ") for name in _COUNTS))
    for heading in keys:
        table.add_column(Text(heading))
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in summarise_sweep(result):
        counts = [number(row["counts"].get(name)) for name in _COUNTS]
        cells = [*(_word(row["settings"][key]) for key in keys), str(row["runs"]), _loss(row)]
        table.add_row(*map(Text, [*cells, number(row["seconds"]), number(row["cost"]), *counts]))
    return table


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _loss(row: dict[str, Any]) -> str:
    if row["diverged"]:
        return f"{row['diverged']} diverged"
    error = row["final_loss_error"]
    return number(row["final_loss"]) + ("" if math.isnan(error) else f" ± {error:.2g}")
