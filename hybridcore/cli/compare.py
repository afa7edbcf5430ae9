"""`hybridcore compare`: baseline, hybrid and controls with the same seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hybridcore import compare as comparisons
from hybridcore.arms import check_arm
from hybridcore.cli.common import (
    errors,
    latest_run,
    read_config,
    run_folder,
    say_interrupted,
    set_up_logging,
)
from hybridcore.cli.progress import Progress
from hybridcore.cli.report import show_tables, write_report
from hybridcore.errors import ConfigError, ConfigProblem

__all__ = ["compare"]


def compare(
    config: str,
    /,
    *,
    seeds: int = 3,
    arms: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    framework: str | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    trace: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    target: float | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train baseline, hybrid and controls, paired and interleaved, and report the time to the same loss.

    Args:
        config: TOML file, or the name of a preset or of a task.
        seeds: Number of seeds, counted up from run.seed.
        arms: Arms to run, separated by spaces or commas; the baseline is always among them.
        framework: Use this framework instead of run.framework.
        set_: Setting dotted.key=value that replaces the file's; may be given again.
        trace: Log every decision with its reason.
        out: Folder for the runs; a new one below run.directory by default.
        target: Validation loss to reach, set in advance; each baseline's own final one by default.
        resume: Go on in the folder of --out, or in the newest one of this task: finished runs are kept.
    """
    if seeds < 1:
        problem = ConfigProblem("--seeds", "out of range", got=seeds, expected="an integer of at least 1")
        raise ConfigError([problem], source="command line", fix="correct the option")
    chosen = [arm for word in arms or comparisons.DEFAULT_ARMS for arm in word.split(",") if arm]
    for arm in chosen:
        check_arm(arm)
    checked, registry = read_config(config, set_ or (), framework, trace)
    latest = resume and out is None
    folder = latest_run(checked, "compare", "--out") if latest else run_folder(checked, "compare", out)
    set_up_logging(trace)
    with Progress(errors()) as progress:
        result = comparisons.compare(
            checked,
            out_dir=folder,
            arms=chosen,
            seeds=range(checked.run.seed, checked.run.seed + seeds),
            progress=progress,
            registry=registry,
            target=target,
            resume=resume,
        )
    show_tables(result)
    write_report(result, folder)
    if not result.interrupted:
        return 0
    done, planned = sum(row.runs for row in result.rows), seeds * len({"baseline", *chosen})
    say_interrupted(done, planned, f"the same command with --resume --out {folder} goes on")
    return 130
