"""What a dynamics model adds to a controller: paired runs with and without, at equal cost.

`credit` asks the model which horizon promises the lowest loss (``controller.credit.foresight``); `threshold`
gates on the smaller of the path's straightness and the model's confidence. Every run with a model is held
against the run of the same task, seed and controller without one: the effect is the mean of
``log(loss / loss without)`` of the validation losses at equal cost over the second half of the run; negative
is better. Cost counts real steps, probes and failed trials; what the model itself computes is stated apart,
as its share of the run's seconds. No decision depends on a clock, so that the table can be made again.

    OMP_NUM_THREADS=1 python -m benchmarks.foresight [--steps N] [--seeds N] [--workers N] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import attrs
import numpy as np

from hybridcore.components import check_config
from hybridcore.engine import Engine
from hybridcore.plugins import load_registry
from hybridcore.tasks.building import build_task

TASKS: dict[str, dict[str, Any]] = {
    "digits-mlp": {"optimizer": "adam", "learning_rate": 3e-4},
    "mnist-mlp": {"optimizer": "sgd", "learning_rate": 0.01, "width": 64},
    "poisson-pinn": {"learning_rate": 1e-3},
    "stdlib-gpt": {"width": 32, "depth": 2, "context": 32, "learning_rate": 3e-4, "max_bytes": 1_000_000},
}
"""Rates somewhat below the best, where there is something to decide: near it no controller jumps."""
CONTROLLERS: dict[str, dict[str, Any]] = {
    "credit": {"name": "credit", "credit": {"foresight": True}},
    "threshold": {"name": "threshold", "threshold": {"confidence_threshold": 0.6}},
}
PREDICTORS = {"credit": "last-update", "threshold": "drift"}
MODELS = ("linear", "mlp")
SHARES = (0.005, 1.0)
"""The default, and one at which small models train their dynamics model as often as they may."""
EVALUATIONS = 40


@attrs.frozen
class Job:
    """One run; `model` "none" is the one without."""

    task: str
    controller: str
    model: str
    share: float
    seed: int
    steps: int


@attrs.frozen
class Run:
    """Validation losses against cost, and counts."""

    cost: tuple[float, ...]
    loss: tuple[float, ...]
    summary: dict[str, Any]


def train(job: Job) -> Run:
    """Train with an engine of its own; validation losses are measured outside the books."""
    import torch

    torch.set_num_threads(1)
    registry = load_registry()
    config = check_config(
        {
            "run": {"seed": job.seed, "steps": job.steps, "framework": "torch"},
            "task": {"name": job.task, **TASKS[job.task]},
            "controller": CONTROLLERS[job.controller],
            "predictor": {"name": PREDICTORS[job.controller]},
            "dynamics": {"name": job.model, "share": job.share},
        },
        registry,
    )
    built = build_task(config, registry)
    engine = Engine.from_config(built.adapter, config, probes=built.probes, registry=registry)
    gap, places = job.steps / EVALUATIONS, [(0.0, float(built.evaluate()["loss"]))]
    while engine.counts.cost < job.steps:
        engine.step(next(built.batches))
        if engine.counts.cost >= gap * len(places):
            places.append((engine.counts.cost, float(built.evaluate()["loss"])))
    cost, loss = zip(*places, strict=True)
    return Run(cost, loss, engine.finish())


def effect(run: Run, without: Run) -> float:
    """Mean of ``log(loss / loss without)`` at equal cost over the second half."""
    end = min(run.cost[-1], without.cost[-1])
    places = np.linspace(end / 2, end, EVALUATIONS)
    one, other = (np.interp(places, r.cost, np.log(r.loss)) for r in (run, without))
    return float(np.mean(one - other))


HEAD = (
    "| controller | task | model | share | loss at equal cost against none | jumps: without, with "
    "| predicted steps: without, with | updates | model's share of the seconds |"
)


def row(key: tuple[str, str, str, float], pairs: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    """Plain data of one row."""
    runs = [run for run, _ in pairs]
    return {
        "controller": key[0],
        "task": key[1],
        "model": key[2],
        "share": key[3],
        "effects": [effect(run, without) for run, without in pairs],
        **{
            name: [[without.summary[name], run.summary[name]] for run, without in pairs]
            for name in ("jumps", "predicted_steps")
        },
        "updates": mean(run.summary["dynamics_updates"] for run in runs),
        "overhead": mean(run.summary["dynamics_seconds"] / run.summary["elapsed"] for run in runs),
    }


def spread(effects: Sequence[float]) -> str:
    """Mean and standard error in percent."""
    error = stdev(effects) / math.sqrt(len(effects)) if len(effects) > 1 else math.nan
    return f"{100 * math.expm1(mean(effects)):+.1f} % ± {100 * error:.1f} %"


def line(made: dict[str, Any]) -> str:
    """A row of the table."""

    def counts(name: str) -> str:
        before, after = (mean(pair[place] for pair in made[name]) for place in (0, 1))
        return f"{before:.0f}, {after:.0f}"

    cells = [
        made["controller"],
        made["task"],
        made["model"],
        f"{made['share']:g}",
        spread(made["effects"]),
        counts("jumps"),
        counts("predicted_steps"),
        f"{made['updates']:.0f}",
        f"{made['overhead']:.1%}",
    ]
    return "| " + " | ".join(cells) + " |"


def totals(rows: Sequence[dict[str, Any]]) -> str:
    """Mean effect over all tasks and seeds."""
    lines = [
        "| controller | model | share | loss at equal cost against none | runs better |",
        "|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((r["controller"], r["model"], r["share"]) for r in rows):
        found = [e for r in rows if (r["controller"], r["model"], r["share"]) == key for e in r["effects"]]
        better = f"{sum(e < 0.0 for e in found)} of {len(found)}"
        lines.append(f"| {key[0]} | {key[1]} | {key[2]:g} | {spread(found)} | {better} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=400, help="cost of a run, in real steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=tuple(TASKS), choices=tuple(TASKS))
    parser.add_argument("--controllers", nargs="+", default=tuple(CONTROLLERS), choices=tuple(CONTROLLERS))
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    kinds = [("none", 0.005), *itertools.product(options.models, options.shares)]
    jobs = [
        Job(task, controller, model, share, seed, options.steps)
        for controller in options.controllers
        for task in options.tasks
        for model, share in kinds
        for seed in range(options.seeds)
    ]
    rows: list[dict[str, Any]] = []
    sys.stdout.write(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|\n")
    with ProcessPoolExecutor(options.workers) as pool:
        done: dict[Job, Run] = {}
        for job, run in zip(jobs, pool.map(train, jobs), strict=True):
            done[job] = run
            if job.model == "none" or job.seed < options.seeds - 1:
                continue
            pairs = [
                (
                    done[attrs.evolve(job, seed=seed)],
                    done[attrs.evolve(job, model="none", share=0.005, seed=seed)],
                )
                for seed in range(options.seeds)
            ]
            rows.append(row((job.controller, job.task, job.model, job.share), pairs))
            sys.stdout.write(line(rows[-1]) + "\n")
            sys.stdout.flush()
    sys.stdout.write("\n" + totals(rows) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
