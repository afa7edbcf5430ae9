"""Continuous cycles with injected faults: does memory stay flat, does anything leak, are all records whole?

    nice -n 10 python -m benchmarks.soak --minutes 120 --verbose        one core, Linux

Each cycle trains a run with random faults; trains another one with checkpoints that is stopped on the way,
resumed, and in every fourth cycle met by a full disk; and feeds 100 batches, some of them poisoned, to one
engine that lives as long as the soak. Every record is read back: each line, each step, and its end.

Resident memory, open files, threads and child processes are sampled at the ends of cycles. The soak fails if
the mean memory of the last third of the samples is more than 1 % above that of the first third (the first
fifth is warm-up), if files, threads or children become more, or if a record is broken. Memory that the C
library holds free is given back before a sample is taken.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import gc
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from benchmarks.file_operations import watched
from hybridcore.config import HybridConfig
from hybridcore.configfile import config_from_dict
from hybridcore.engine import Engine
from hybridcore.errors import CheckpointError, DivergenceError
from hybridcore.events import Event, EventBus
from hybridcore.injection import corrupted, parse_faults
from hybridcore.metrics import SCHEMA, MetricsWriter
from hybridcore.plugins import Registry, load_registry
from hybridcore.records import read_run
from hybridcore.runner import run_task
from hybridcore.tasks.building import build_task

GROWTH = 0.01
_STEPS = ("real-step", "step-skipped")
FAULTS = (
    "nan@{}",
    "nan@{}x3",
    "spike@{}:300",
    "poison@{}x3:10",
    "lr@{}x3:50",
    "predictor@{}x2:10",
    "weights@{}",
)
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


@attrs.frozen
class Sample:
    """What the process holds: seconds since the start, bytes, and counts."""

    seconds: float
    memory: int
    files: int
    threads: int
    children: int


class StopError(BaseException):
    """Ends a run in the middle of a batch."""


def sample(started: float) -> Sample:
    """What the process holds now."""
    gc.collect()
    if _TRIM is not None:
        _TRIM(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    tasks = list(Path("/proc/self/task").iterdir())
    children = sum(len((task / "children").read_text().split()) for task in tasks)
    # The listing itself opens one more file, every time.
    files = len(list(Path("/proc/self/fd").iterdir()))
    return Sample(time.monotonic() - started, pages * os.sysconf("SC_PAGESIZE"), files, len(tasks), children)


def config(framework: str, seed: int, **checkpoint: Any) -> HybridConfig:
    """A short run in which trials are open most of the time."""
    return config_from_dict(
        {
            "run": {"steps": 80, "framework": framework, "evaluate_every": 20, "seed": seed},
            "task": {"name": "logistic", "optimizer": "adam", "learning_rate": 0.01},
            "phases": {"warmup_steps": 5, "full_steps": 5},
            "average": {"enabled": True},
            "checkpoint": checkpoint,
        }
    )


def check_record(folder: Path, steps: int | None) -> None:
    """Every line is whole, no step is missing; `steps` is None where the run was not to reach its end.

    Raises:
        ValueError: The record is not complete.
        MetricsError: A line is broken.
    """
    content = (folder / "metrics.jsonl").read_bytes()
    record = read_run(folder)
    if not content.endswith(b"\n") or content.count(b"\n") != len(record.events):
        raise ValueError(f"{folder}: the last line is cut off")
    found = [event["step"] for event in record.events if event["event"] in _STEPS]
    if found != list(range(1, len(found) + 1)) or (steps is not None and len(found) != steps):
        raise ValueError(f"{folder}: steps are missing: {len(found)} lines, the last one {found[-1:]}")
    if steps is not None and (record.summary is None or record.events[-1]["event"] != "run-end"):
        raise ValueError(f"{folder}: there is no end")


class Soak:
    """The cycles."""

    def __init__(self, folder: Path, frameworks: list[str], seed: int) -> None:
        self.folder, self.frameworks = folder, frameworks
        self.rng, self.registry = random.Random(seed), load_registry()
        self.counts: Counter[str] = Counter()
        self.engine = LongEngine(folder / "long", self.registry)

    def cycle(self, number: int) -> None:
        """One cycle; raises whatever is wrong."""
        framework = self.frameworks[number % len(self.frameworks)]
        self._faulty(framework, number)
        self._resumed(framework, number)
        self.engine.feed(100, number)
        self.counts["cycles"] += 1

    def _faulty(self, framework: str, seed: int) -> None:
        plan = ",".join(kind.format(self.rng.randint(10, 70)) for kind in self.rng.sample(FAULTS, 2))
        folder, steps = self.folder / "faulty", None
        try:
            run_task(
                config(framework, seed), out_dir=folder, registry=self.registry, faults=parse_faults(plan)
            )
            steps = 80
        except DivergenceError:
            self.counts["runs that ended with a DivergenceError"] += 1
        check_record(folder, steps)
        self.counts["runs with faults"] += 1
        shutil.rmtree(folder)

    def _resumed(self, framework: str, seed: int) -> None:
        at, steps = self.rng.randint(2, 79), [0]
        folder, full = self.folder / "resumed", seed % 4 == 3
        made = config(framework, seed, every=5, keep=2, asynchronous=bool(seed % 2))

        def listen(event: Event, payload: Any) -> None:
            if event is Event.REAL_STEP:
                steps[0] = payload["step"]
                if payload["step"] == at:
                    raise StopError

        def strike(operation: str, moment: str) -> None:
            if full and max(at - 15, 0) < steps[0] and moment != "after" and operation != "rmtree":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with watched(strike):
            try:
                run_task(made, out_dir=folder, registry=self.registry, progress=listen)
            except StopError:
                self.counts["runs stopped"] += 1
        try:
            run_task(made, out_dir=folder, registry=self.registry, resume=True)
        except CheckpointError:
            if at > 6 and not full:
                raise
            self.counts["runs stopped before the first checkpoint"] += 1
        else:
            check_record(folder, 80)
            left = [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
            if left:
                raise ValueError(f"{folder}: half files: {left}")
            self.counts["runs resumed"] += 1
        shutil.rmtree(folder)


class LongEngine:
    """One engine that is fed for hours, with poisoned batches and not-a-number among the good ones."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder, self.registry = folder, registry
        self.steps = self.diverged = 0
        self._begin()

    def _begin(self) -> None:
        made = config("numpy", 0)
        task, events = build_task(made, self.registry), EventBus()
        self.batches = iter(task.batches)
        self.writer = MetricsWriter(self.folder / "metrics.jsonl")
        events.listen(self.writer)
        events.emit(Event.RUN_START, schema=SCHEMA)
        self.engine = Engine.from_config(
            task.adapter, made, probes=task.probes, registry=self.registry, events=events
        )

    def feed(self, count: int, seed: int) -> None:
        """Batches, three of them bad."""
        rng = np.random.default_rng(seed)
        bad = rng.integers(0, count, 3)
        for index in range(count):
            batch = next(self.batches)
            if index in bad:
                batch = corrupted(batch, float(rng.choice([3.0, np.nan])), rng)
            try:
                self.engine.step(batch)
            except DivergenceError:  # the right end of too much poison; another one takes its place
                self.diverged += 1
                self.close()
                self._begin()

    def close(self) -> None:
        """Check the record."""
        self.engine.finish()
        self.writer.close()
        check_record(self.folder, None)
        self.steps += self.engine.real_steps


def judge(samples: list[Sample]) -> tuple[dict[str, Any], list[str]]:
    """Growth between the thirds after warm-up, and what is wrong with it."""
    kept = samples[len(samples) // 5 :]
    third = max(1, len(kept) // 3)
    first, last = kept[:third], kept[-third:]
    means = [sum(s.memory for s in part) / len(part) for part in (first, last)]
    growth = means[1] / means[0] - 1.0
    wrong = [f"memory grows by {100 * growth:.2f} %"] if growth > GROWTH else []
    for name in ("files", "threads", "children"):
        before, after = (min(getattr(s, name) for s in part) for part in (first, last))
        if after > before:
            wrong.append(f"{name} grow from {before} to {after}")
    found = {
        "samples": len(samples),
        "memory_mib": [round(mean / 2**20, 1) for mean in means],
        "growth_percent": round(100 * growth, 3),
        **{
            name: [getattr(kept[0], name), getattr(kept[-1], name)]
            for name in ("files", "threads", "children")
        },
    }
    return found, wrong


def summary(minutes: float, report: dict[str, Any]) -> str:
    """One line for the reader."""
    kept = {name: "{} to {}".format(*report[name]) for name in ("files", "threads", "children")}
    return (
        f"soak, {minutes:g} minutes: {report['cycles']} cycles, {report['runs with faults']} runs with "
        f"faults, {report.get('runs resumed', 0)} resumed, "
        f"{report['steps of the long engine']} steps of one engine; "
        f"memory {report['growth_percent']:+.2f} %, "
        + ", ".join(f"{name} {change}" for name, change in kept.items())
        + f"; wrong: {'; '.join(report['wrong']) or 'nothing'}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print samples and all counts")
    given = parser.parse_args(arguments)
    logging.getLogger("hybridcore").setLevel(logging.CRITICAL)
    frameworks = ["numpy", *(["torch"] if find_spec("hybridcore_torch") else [])]
    started, samples = time.monotonic(), []
    every = min(given.every, 60 * given.minutes / 15)
    with tempfile.TemporaryDirectory() as name:
        soak, number = Soak(Path(name), frameworks, given.seed), 0
        while (now := time.monotonic() - started) < 60 * given.minutes:
            soak.cycle(number)
            number += 1
            if now >= every * (len(samples) + 1):
                samples.append(sample(started))
                if given.verbose:
                    sys.stderr.write(json.dumps(attrs.asdict(samples[-1])) + "\n")
        soak.engine.close()
    found, wrong = judge(samples)
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in others:
        thread.join(10.0)  # it was told to stop just now, and a busy machine may not have let it run yet
    alive = [thread.name for thread in others if thread.is_alive()]
    if alive:
        wrong.append(f"threads are left: {alive}")
    report = {**found, **soak.counts, "wrong": wrong}
    report |= {"steps of the long engine": soak.engine.steps, "its ends by divergence": soak.engine.diverged}
    if given.verbose:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(summary(given.minutes, report) + "\n")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
