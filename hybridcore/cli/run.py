"""`hybridcore run`: train one task and record it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hybridcore.cli.common import (
    errors,
    latest_run,
    output,
    read_config,
    run_folder,
    set_up_logging,
)
from hybridcore.cli.progress import Progress
from hybridcore.injection import parse_faults
from hybridcore.records import read_run
from hybridcore.report.table import summary_table
from hybridcore.runfiles import require_unused
from hybridcore.runner import run_task

__all__ = ["run"]


def run(
    config: str,
    /,
    *,
    framework: str | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    arm: str = "hybrid",
    baseline: Path | None = None,
    trace: Annotated[bool, Parameter(negative=())] = False,
    inject: str | None = None,
    out: Path | None = None,
    resume: Annotated[bool | Path, Parameter(negative=())] = False,
) -> int:
    """Train one task and record it.

    Args:
        config: TOML file, or the name of a preset.
        framework: Use this framework instead of run.framework.
        set_: Setting dotted.key=value that replaces the file's; may be given again.
        arm: hybrid, baseline, a control (reshuffled, none, frozen, random), lr-xN (N times the rate), tuned.
        baseline: Folder of a recorded baseline with the same seed; gives speed-up and loss gap.
        trace: Log every decision with its reason.
        inject: Faults to inject, such as nan@500,spike@900; kinds: nan, spike, poison, predictor, lr,
            plateau, weights.
        out: Folder for this run; a new one below run.directory by default.
        resume: Go on with an interrupted run from its newest checkpoint: in the folder given here, or in the
            latest one below run.directory of this task and arm.
    """
    checked, registry = read_config(config, set_ or (), framework, trace)
    measured = None if baseline is None else read_run(baseline).evaluations
    faults = parse_faults(inject or "")
    if resume:
        folder = resume if isinstance(resume, Path) else out or latest_run(checked, arm)
    else:
        folder = run_folder(checked, arm, out)
        require_unused(folder)
    set_up_logging(trace)
    with Progress(errors()) as progress:
        result = run_task(
            checked,
            arm=arm,
            out_dir=folder,
            progress=progress,
            registry=registry,
            baseline=measured,
            faults=faults,
            resume=bool(resume),
        )
    console = output()
    console.print(summary_table(result.summary))
    console.print(f"recorded in {result.directory}", highlight=False, soft_wrap=True)
    if result.interrupted and checked.checkpoint.every:
        errors().print(f"the same command with --resume {folder} goes on", markup=False, soft_wrap=True)
    return 130 if result.interrupted else 0
