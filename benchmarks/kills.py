"""SIGKILL at random moments, also inside a checkpoint write: is any run lost? (F53, F54)

    python benchmarks/kills.py --kills 200

A small run on the NumPy adapter writes a checkpoint after each batch, so that many kills strike while one is
being written. After each kill the run is resumed; a run that reaches its end is compared with one that was
never killed, record and weights, and the next one begins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import attrs

from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.config import HybridConfig
from hybridcore.configfile import config_from_dict
from hybridcore.plugins import Registry, load_registry
from hybridcore.runner import run_task

CLOCK = {"elapsed", "seconds", "credit_seconds", "overhead_share", "average_seconds", "averaged_elapsed"}
CLOCK |= {"time", "config"}


@attrs.define
class Outcome:
    """What came of the kills.

    Attributes:
        kills: Processes killed.
        inside: Kills that struck while a checkpoint was being written.
        finished: Runs that reached their end.
        different: Runs that ended unlike the one that was never killed.
        lost: Kills after which a checkpoint that had been there could not be gone on from.
    """

    kills: int = 0
    inside: int = 0
    finished: int = 0
    different: int = 0
    lost: int = 0


def config(steps: int, asynchronous: bool) -> HybridConfig:
    """A run of logistic regression in which continuous trials are open most of the time."""
    return config_from_dict(
        {
            "run": {"steps": steps, "framework": "numpy", "evaluate_every": 20},
            "task": {"name": "logistic"},
            "phases": {"warmup_steps": 5, "full_steps": 5},
            "average": {"enabled": True},
            "checkpoint": {"every": 1, "keep": 2, "asynchronous": asynchronous},
        }
    )


def end_of(folder: Path) -> object:
    """Record without what a clock wrote into it, and weights of a finished run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    record = [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]
    return record, (folder / "checkpoints" / "average.safetensors").read_bytes()


def newest(folder: Path) -> int:
    """Batches before the newest sound checkpoint; 0 without one."""
    found = next(CheckpointStore(folder / "checkpoints").sound(), None)
    return found[1].batches if found is not None else 0


def attempt(made: HybridConfig, folder: Path, registry: Registry, wait: float) -> int:
    """Run or resume in a child process, killed after `wait` seconds; its exit code, negative if killed."""
    resume = bool(CheckpointStore(folder / "checkpoints").paths())
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    child = os.fork()
    if child == 0:
        try:
            run_task(made, out_dir=folder, registry=registry, resume=resume)
            os._exit(0)
        except BaseException:
            os._exit(1)
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_runs(folder: Path, kills: int, seed: int, steps: int = 60, longest: float = 0.4) -> Outcome:
    """Kill runs until so many kills have struck.

    Args:
        folder: Where runs go.
        kills: How many.
        seed: Seeds the moments.
        steps: Real steps of a run.
        longest: Longest time until a kill, in seconds.
    """
    rng, registry, outcome = random.Random(seed), load_registry(), Outcome()
    run_task(config(steps, False), out_dir=folder / "truth", registry=registry)
    truth, run = end_of(folder / "truth"), folder / "run"
    while outcome.kills < kills:
        made = config(steps, asynchronous=bool(outcome.finished % 2))
        before = newest(run)
        code = attempt(made, run, registry, rng.uniform(0.0, longest))
        if code == 0:
            outcome.finished += 1
            outcome.different += end_of(run) != truth
            shutil.rmtree(run)
        elif code == -signal.SIGKILL:
            outcome.kills += 1
            outcome.inside += any((run / "checkpoints").glob(".unfinished-*"))
            outcome.lost += newest(run) < before
        else:
            outcome.lost += 1
            shutil.rmtree(run, ignore_errors=True)
    return outcome


def main() -> None:
    """Count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_runs(Path(folder), given.kills, given.seed)
    for name, value in attrs.asdict(outcome).items():
        print(f"{name:>10} {value}")
    if outcome.lost or outcome.different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
