"""`hybridcore sweep`: every combination of some settings, with the same seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from hybridcore.errors import ConfigError, ConfigProblem, PluginError
from hybridcore.grid import baseline_point, parse_grid, plan_sweep
from hybridcore.report.sweep_figure import save_sweep_figure
from hybridcore.report.sweep_page import (
    SWEEP_NOTE,
    save_sweep_page,
    settings_of,
    sweep_cells,
    sweep_columns,
)
from hybridcore.sweep import sweep as run_sweep
from hybridcore.sweep_results import Sweep

__all__ = ["sweep", "sweep_table", "write_sweep_report"]


def sweep(
    config: str,
    /,
    *,
    grid: Annotated[list[str], Parameter(negative=())],
    seeds: int = 1,
    arm: str = "hybrid",
    baseline: Annotated[bool, Parameter(negative=())] = False,
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
        arm: What to train: hybrid, baseline, a control (reshuffled, none, frozen, random), or lr-xN.
        baseline: Train the plain loop beside it, for speed-ups.
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
    if arm == "baseline" and baseline:
        problem = ConfigProblem("--baseline", "is what is swept", got="--arm baseline", hint="leave it out")
        raise ConfigError([problem], source="command line", fix="correct the options")
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
            baseline=baseline,
            progress=progress,
            registry=registry,
            announce=announce,
        )
    console = output()
    console.print(sweep_table(result))
    write_sweep_report(result, folder)
    runs = (*result.runs, *result.baselines)
    reused = sum(run.reused for run in runs)
    kept = f", {reused} of {len(runs)} runs from before" if reused else ""
    console.print(f"recorded in {folder / 'sweep.json'}{kept}", highlight=False, soft_wrap=True, markup=False)
    if not result.interrupted:
        return 0
    bases = {baseline_point(point).folder for point in points} if baseline else set()
    done, planned = len(result.runs) + len(result.baselines), seeds * (len(points) + len(bases))
    say_interrupted(done, planned, f"the same command with --out {folder} goes on")
    return 130


def sweep_table(result: Sweep) -> Table:
    """The combinations, lowest final loss first."""
    table = Table(
        title=f"Sweep of {result.arm}, lowest final validation loss first",
        caption=SWEEP_NOTE,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        box=None,
    )
    settings = len(settings_of(result))
    for place, heading in enumerate(sweep_columns(result)):
        table.add_column(Text(heading), justify="left" if place < settings else "right", overflow="fold")
    for cells in sweep_cells(result):
        table.add_row(*map(Text, cells))
    return table


def write_sweep_report(result: Sweep, folder: Path) -> None:
    """Write the figure and the page where matplotlib is installed; say how to get them where it is not."""
    try:
        save_sweep_figure(result, folder / "report.png")
        save_sweep_page(result, folder / "report.html")
    except PluginError as error:
        errors().print(f"no figures: {error.fix}", markup=False, soft_wrap=True)
