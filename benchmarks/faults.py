"""Fault injection: does every run end well, or with the right error, and do clean runs stay quiet?

    python -m benchmarks.faults              200 faults and 20 clean runs, a few minutes on one core
    python -m benchmarks.faults --quick      a tenth of them
    python -m benchmarks.faults --workers 2  the same in two processes

Four small tasks times two optimizers times 25 faults. A run ends well where its validation loss (mean of the
last three evaluations) is at most 5 % above that of the same run without the fault, and its weights are
finite. A run that raises `DivergenceError` must leave finite weights too. Since a fault in a trial costs
predictions that the run without fault had, runs are also compared with the plain loop without fault and
without the engine. With --control, every fault is tried with monitors switched off too. Clean
runs with an odd seed, in PyTorch, have a learning-rate warm-up and a cosine decay.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from hybridcore.baseline import Baseline
from hybridcore.clock import Stopwatch
from hybridcore.configfile import config_from_dict
from hybridcore.engine import Engine
from hybridcore.errors import DivergenceError
from hybridcore.events import Event, EventBus
from hybridcore.injection import inject, mislead, parse_faults
from hybridcore.plugins import load_registry
from hybridcore.protocols import OptimizerSpec, TaskRun
from hybridcore.reference import ReferenceAdapter, SoftmaxRegression
from hybridcore.tasks.building import build_task

STEPS = 1000
TOLERANCE = 1.05
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "clouds": ("numpy", {"name": "benchmarks.faults:clouds"}),
    "logistic": ("numpy", {"name": "logistic"}),
    "digits-mlp": ("torch", {"name": "digits-mlp", "width": 32, "weight_decay": 0.01}),
    "mnist-mlp": ("torch", {"name": "mnist-mlp", "width": 32, "weight_decay": 0.01}),
}
RATES = {
    "clouds": {"sgd": 0.2, "adam": 0.02},
    "logistic": {"sgd": 0.5, "adam": 0.01},
    "digits-mlp": {"sgd": 0.1, "adam": 0.002},
    "mnist-mlp": {"sgd": 0.1, "adam": 0.002},
}
FAULTS = (
    "nan@200", "nan@500x3", "nan@800x8", "nan@400x60",
    "spike@250:100", "spike@500:1000", "spike@700:10000", "spike@450x3:300",
    "poison@200x1:100", "poison@400x5:10", "poison@600x20:10", "poison@500x1:10000", "poison@300x60:3",
    "lr@200x1:1000", "lr@300x5:100", "lr@500x20:30", "lr@600x2:100000",
    "plateau@300x50", "plateau@500x100:0.001",
    "predictor@150x1", "predictor@300x3:10", "predictor@400x2:nan",
    "weights@250", "weights@700", "nan@300,spike@500,poison@600x3",
)  # fmt: skip


def clouds(*, framework: str, seed: int, device: str, optimizer: str, learning_rate: float) -> TaskRun:
    """Softmax regression on five overlapping clouds; the best possible loss is far from zero."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((5, 12))
    y = rng.integers(0, 5, 4000)
    x = centres[y] + 1.5 * rng.standard_normal((4000, 12))
    start = {"weight": 0.01 * rng.standard_normal((5, 12)), "bias": np.zeros(5)}
    adapter = ReferenceAdapter(SoftmaxRegression(), start, OptimizerSpec(optimizer, learning_rate))
    order = np.random.default_rng(seed + 1)

    def batches():
        while True:
            rows = order.integers(0, 3000, 32)
            yield x[rows], y[rows]

    def evaluate():
        return {"loss": float(adapter.probe_loss((x[3400:], y[3400:])).mean())}

    return TaskRun(adapter, batches(), ((x[3000:3200], y[3000:3200]), (x[3200:3400], y[3200:3400])), evaluate)


@attrs.frozen
class Job:
    """One run: `faults` is empty for a clean one; `arm` is "engine", "unwatched" (no monitors) or "plain"."""

    task: str
    optimizer: str
    faults: str
    seed: int
    steps: int
    arm: str = "engine"


def run(job: Job) -> dict[str, Any]:
    """Train it; what came of it as plain data."""
    logging.getLogger("hybridcore").setLevel(logging.CRITICAL)
    if job.task in ("digits-mlp", "mnist-mlp"):
        import torch

        torch.set_num_threads(1)
    framework, table = TASKS[job.task]
    table = {**table, "optimizer": job.optimizer, "learning_rate": RATES[job.task][job.optimizer]}
    if job.seed % 2 and framework == "torch":
        table |= {"schedule": "cosine", "schedule_steps": job.steps, "lr_warmup_steps": job.steps // 20}
    config = config_from_dict(
        {
            "run": {"steps": job.steps, "framework": framework, "seed": job.seed},
            "task": table,
            **({"divergence": {"monitors": []}} if job.arm == "unwatched" else {}),
        }
    )
    registry = load_registry()
    events, faults, signals = EventBus(), parse_faults(scaled(job.faults, job.steps)), []
    events.listen(lambda e, p: signals.append((p["monitor"], p["level"])) if e is Event.SIGNAL else None)
    task = build_task(config, registry)
    if faults:
        task = inject(task, faults, events)
    started = time.process_time()
    if job.arm == "plain":
        engine = Baseline(task.adapter, events, Stopwatch(), config.metrics)
    else:
        engine = Engine.from_config(
            task.adapter, config, probes=task.probes, registry=registry, events=events
        )
        mislead(engine.predictors.values(), faults, task.adapter, events)
    losses, error = [], None
    try:
        for batch in task.batches:
            engine.step(batch)
            if engine.real_steps % (job.steps // 20) == 0 and engine.real_steps > 0.8 * job.steps:
                losses.append(task.evaluate()["loss"])
            if engine.real_steps >= job.steps:
                break
        engine.finish()
        losses[-1] = task.evaluate()["loss"]
    except DivergenceError as caught:
        error = str(caught)
    finite = all(np.isfinite(np.asarray(bucket)).all() for bucket in task.adapter.read_params())
    loss = float(np.mean(losses[-3:])) if error is None else math.nan
    return {
        **attrs.asdict(job),
        "loss": loss,
        "finite": bool(finite),
        "error": error,
        "seconds": time.process_time() - started,
        "signals": Counter(f"{monitor}.{level}" for monitor, level in signals),
        "summary": engine.summary(),
    }


def scaled(plan: str, steps: int) -> str:
    """A plan written for `STEPS` steps, for a shorter run; lengths stay."""
    if steps == STEPS or not plan:
        return plan
    parts = [(part.partition("@")[0], part.partition("@")[2]) for part in plan.split(",")]

    def moved(rest: str) -> str:
        digits = rest.partition("x")[0].partition(":")[0]
        return f"{round(int(digits) * steps / STEPS)}{rest[len(digits) :]}"

    return ",".join(f"{kind}@{moved(rest)}" for kind, rest in parts)


def jobs(steps: int, thin: int, clean: int, control: bool) -> list[Job]:
    """Clean runs first: those with seed 0 are what the faulty ones are compared with."""
    pairs = [(task, optimizer) for task in TASKS for optimizer in RATES[task]]
    made = [Job(*pairs[i % len(pairs)], "", i // len(pairs), steps) for i in range(max(clean, len(pairs)))]
    made += [Job(*pair, "", 0, steps, arm="plain") for pair in pairs]
    for index, (task, optimizer) in enumerate(pairs):
        for fault in FAULTS[index % thin :: thin]:
            made.append(Job(task, optimizer, fault, 0, steps))
            if control:
                made.append(Job(task, optimizer, fault, 0, steps, arm="unwatched"))
    return made


def judge(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Outcome of every faulty run, and alarms of the clean ones."""
    base = {
        (r["task"], r["optimizer"], r["arm"]): r["loss"]
        for r in results
        if not r["faults"] and r["seed"] == 0
    }
    table: dict[str, Counter[str]] = {}
    missed = []
    for r in results:
        if not r["faults"]:
            continue
        ratio, plain = (r["loss"] / base[r["task"], r["optimizer"], arm] for arm in ("engine", "plain"))
        if not r["finite"]:
            outcome = "weights not finite"
        elif r["error"] is not None:
            outcome = "aborted"
        else:
            outcome = (
                "within 5 % of the run without fault"
                if ratio <= TOLERANCE
                else "within 5 % of the plain loop without fault"
                if plain <= TOLERANCE
                else "worse than both"
            )
        table.setdefault(r["arm"], Counter())[outcome] += 1
        if r["arm"] == "engine" and not outcome.startswith("within 5 % of the run"):
            place = f"{r['task']} {r['optimizer']} {r['faults']}"
            missed.append(f"{outcome}: {place} ({ratio:.3f}, {plain:.3f})")
    clean = [r for r in results if not r["faults"] and r["arm"] == "engine"]
    return {
        "outcomes": {arm: dict(counts) for arm, counts in table.items()},
        "not within 5 % of the run without fault": missed,
        "clean runs": len(clean),
        "clean steps": sum(r["steps"] for r in clean),
        "clean signals": dict(sum((Counter(r["signals"]) for r in clean), Counter())),
        "clean rollbacks by recovery": sum(
            n
            for r in clean
            for action, n in r["summary"]["recovery_actions"].items()
            if action in ("roll-back-and-retry", "skip-batch", "abort")
        ),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the faults, shorter runs")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--control", action="store_true", help="also try every fault without monitors")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for every run's outcome")
    options = parser.parse_args(arguments)
    steps = options.steps or (600 if options.quick else STEPS)
    todo = jobs(steps, 10 if options.quick else 1, 8 if options.quick else 20, options.control)
    started = time.perf_counter()
    if options.workers > 1:
        with ProcessPoolExecutor(options.workers) as pool:
            results = list(pool.map(run, todo))
    else:
        results = [run(job) for job in todo]
    verdict = {**judge(results), "seconds": round(time.perf_counter() - started, 1)}
    if options.out is not None:
        options.out.write_text(
            json.dumps({"verdict": verdict, "runs": results}, indent=1, default=str) + "\n"
        )
    sys.stdout.write(json.dumps(verdict, indent=1) + "\n")
    return verdict


if __name__ == "__main__":
    main()
