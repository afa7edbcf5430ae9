"""SIGKILL inside chosen file operations and at random moments: is any run lost? (F53, F54)

    python -m benchmarks.kills --kills 200
    python -m benchmarks.kills --kills 50 --framework torch

A small run writes a checkpoint after each batch. Of ten kills, five strike before, in the middle of or after
one file operation of the child process, counted from its start; one at an operation on the record of the run,
one in the middle of a write of the record, three at a random time. After each kill the run is resumed; a run
that reaches its end is compared with one that was never killed, record and weights, and the next one begins.
The last run is resumed until its end.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import attrs

from benchmarks.file_operations import RECORD, watched
from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.config import HybridConfig
from hybridcore.configfile import config_from_dict
from hybridcore.plugins import Registry, load_framework, load_registry
from hybridcore.runner import run_task
from hybridcore.testing import without_clock

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")
_HANGING = 120.0
"""Seconds without progress after which a run hangs: on a busy machine a sound one may take its time."""
_KINDS = ("", "time", "", f"{RECORD}write half", "", "time", "", RECORD, "", "time")
_MEMORY = Path("/dev/shm")


@attrs.define
class Outcome:
    """What came of the kills.

    Attributes:
        kills: Processes killed.
        checkpoint: Kills inside the write of a checkpoint: they left one unfinished.
        record: Kills before, in or after an operation on the record.
        torn: Those of them that left half a line.
        finished: Runs that reached their end.
        different: Runs that ended unlike the one that was never killed.
        lost: Kills after which a checkpoint that had been there could not be gone on from.
        operations: Kills by the operation and the moment that they struck at.
    """

    kills: int = 0
    checkpoint: int = 0
    record: int = 0
    torn: int = 0
    finished: int = 0
    different: int = 0
    lost: int = 0
    operations: Counter[str] = attrs.field(factory=Counter)


@attrs.frozen
class Strike:
    """When a process is killed; never, without any of these.

    Attributes:
        point: At this moment of a file operation, counted from 1 (see `file_operations`).
        only: Count moments alone that begin like this, as "record-write half" does.
        seconds: After so many seconds.
        training: Seconds count from the first real step, not from the start of the process.
    """

    point: int | None = None
    only: str = ""
    seconds: float | None = None
    training: bool = False


def place() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory, if there is one: a killed process loses nothing that the system has taken."""
    return tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None)


def config(steps: int, asynchronous: bool, framework: str = "numpy") -> HybridConfig:
    """A run of logistic regression in which continuous trials are open most of the time."""
    return config_from_dict(
        {
            "run": {"steps": steps, "framework": framework, "evaluate_every": 20},
            "task": {"name": "logistic", "optimizer": "adam", "learning_rate": 0.01},
            "phases": {"warmup_steps": 5, "full_steps": 5},
            "average": {"enabled": True},
            "checkpoint": {"every": 1, "keep": 2, "asynchronous": asynchronous},
        }
    )


def end_of(folder: Path) -> object:
    """Record without what a clock wrote into it, and weights of a finished run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    record = [without_clock(line) for line in lines]
    return record, (folder / "checkpoints" / "average.safetensors").read_bytes()


def newest(folder: Path) -> int:
    """Batches before the newest sound checkpoint; 0 without one."""
    found = next(CheckpointStore(folder / "checkpoints").sound(), None)
    return found[1].batches if found is not None else 0


def attempt(made: HybridConfig, folder: Path, registry: Registry, strike: Strike) -> tuple[int, str]:
    """Run or resume in a child process that is killed on the way.

    Returns:
        The exit code, negative if killed, and the operation that the strike met; empty for a random time.
    """
    resume = bool(CheckpointStore(folder / "checkpoints").paths())
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(hear)
            _run(made, folder, registry, resume, strike, say)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(say)
    heard, watch = b"", _Watch(child)
    until = math.inf if strike.seconds is None or strike.training else time.monotonic() + strike.seconds
    while (left := until - time.monotonic()) > 0 and not watch.hangs():
        if select.select([hear], [], [], min(left, 5.0))[0]:
            part = os.read(hear, 4096)
            if not part:
                break  # the child is gone
            if strike.training and strike.seconds is not None and b"train\n" in part:
                until = time.monotonic() + strike.seconds
            heard += part
    else:
        if left > 0:
            os.kill(child, signal.SIGABRT)  # it says where it is
            os.waitpid(child, 0)
            raise TimeoutError(f"a run hung: {heard!r}")
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(hear)
    return code, heard.decode().removeprefix("train\n").strip()


class _Watch:
    """Sees whether a process works: it hangs after `_HANGING` seconds with hardly any processor time."""

    def __init__(self, process: int) -> None:
        self._stat = Path(f"/proc/{process}/stat")
        self._since, self._used = time.monotonic(), self._processor()

    def _processor(self) -> float:
        try:
            fields = self._stat.read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def hangs(self) -> bool:
        used, now = self._processor(), time.monotonic()
        if used - self._used > 0.5:
            self._since, self._used = now, used
        return now - self._since > _HANGING


def _run(
    made: HybridConfig, folder: Path, registry: Registry, resume: bool, strike: Strike, say: int
) -> None:
    """The child's whole life."""
    faulthandler.enable()
    met = 0
    trained = False

    def point(operation: str, moment: str) -> None:
        nonlocal met
        if not f"{operation} {moment}".startswith(strike.only):
            return
        met += 1
        if met == strike.point:
            os.write(say, f"{operation} {moment}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def listen(event: object, _: object) -> None:
        nonlocal trained
        if not trained and str(event) == "real-step":
            trained = True
            os.write(say, b"train\n")

    with watched(point):
        run_task(made, out_dir=folder, registry=registry, resume=resume, progress=listen)


def kill_runs(
    folder: Path, kills: int, seed: int, steps: int = 60, longest: float = 0.4, framework: str = "numpy"
) -> Outcome:
    """Kill runs until so many kills have struck.

    Args:
        folder: Where runs go.
        kills: How many.
        seed: Seeds where and when.
        steps: Real steps of a run.
        longest: Longest time until a kill at a random moment, in seconds.
        framework: Whose adapter.
    """
    rng, registry, outcome = random.Random(seed), load_registry(), Outcome()
    _warm_up(folder / "warm-up", registry, framework)
    code, _ = attempt(config(steps, False, framework), folder / "truth", registry, Strike())
    if code:
        raise RuntimeError(f"the run that nobody kills ends with the exit code {code}")
    truth, run = end_of(folder / "truth"), folder / "run"
    while outcome.kills < kills or run.exists():
        made = config(steps, asynchronous=bool(outcome.finished % 2), framework=framework)
        before = newest(run)
        strike = _strike(rng, longest, outcome.kills) if outcome.kills < kills else Strike()
        code, operation = attempt(made, run, registry, strike)
        if code == 0:
            outcome.finished += 1
            outcome.different += end_of(run) != truth
            shutil.rmtree(run)
        elif code == -signal.SIGKILL:
            outcome.kills += 1
            outcome.checkpoint += any((run / "checkpoints").glob(".unfinished-batch-*"))
            outcome.record += operation.startswith(RECORD)
            outcome.torn += _torn(run / "metrics.jsonl")
            outcome.operations[operation or "random time"] += 1
            outcome.lost += newest(run) < before
        else:
            outcome.lost += 1
            shutil.rmtree(run, ignore_errors=True)
    return outcome


def _warm_up(folder: Path, registry: Registry, framework: str) -> None:
    """Import everything once, before the forks; JAX and TensorFlow must not have computed by then."""
    load_framework(framework)
    computes = framework if framework == "torch" else "numpy"
    run_task(config(12, False, computes), out_dir=folder, registry=registry)


def _torn(record: Path) -> bool:
    """Whether the last line is cut off."""
    return record.is_file() and record.read_bytes()[-1:] not in (b"", b"\n")


def _strike(rng: random.Random, longest: float, number: int) -> Strike:
    kind = _KINDS[number % len(_KINDS)]
    if kind == "time":
        return Strike(seconds=rng.uniform(0.0, longest), training=rng.random() < 0.75)
    return Strike(point=rng.randint(1, 160 if kind == "" else 5), only=kind)


def summary(outcome: Outcome, framework: str) -> str:
    """One line for the reader."""
    return (
        f"kills, {framework}: {outcome.kills} ({outcome.checkpoint} inside a checkpoint's write, "
        f"{outcome.record} at the record, {outcome.torn} left half a line), {outcome.finished} runs ended: "
        f"{outcome.lost} lost, {outcome.different} different in record or weights"
    )


def main(arguments: list[str] | None = None) -> None:
    """Count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60, help="real steps of a run")
    parser.add_argument("--operations", action="store_true", help="print what the kills struck at")
    parser.add_argument("--framework", choices=FRAMEWORKS, default="numpy")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    with place() as folder:
        outcome = kill_runs(
            Path(folder), given.kills, given.seed, steps=given.steps, framework=given.framework
        )
    sys.stdout.write(f"{summary(outcome, given.framework)}, {time.monotonic() - started:.0f} s\n")
    if given.operations:
        sys.stdout.write(json.dumps(dict(sorted(outcome.operations.items())), indent=1) + "\n")
    if outcome.lost or outcome.different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
