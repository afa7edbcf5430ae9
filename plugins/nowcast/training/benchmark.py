"""Does `nowcast` pay? Predictions on held-out trainings, and runs against `drift` under the same controllers.

Every run is paired with a baseline of the same seed without prediction. Speed-up is the cost at which the
baseline reaches its final validation loss over that of the run, in real steps with probes and failed trials
counted. What the predictor itself computes is not in it and is printed apart: processor time of one
prediction, in real steps.

    OMP_NUM_THREADS=1 python plugins/nowcast/training/benchmark.py [predictions] [runs] [cost]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from judge import BASELINES, judge, nowcast, table
from trajectories import SMALL

from hybridcore.config import (
    BudgetConfig,
    ControllerConfig,
    HistoryConfig,
    HybridConfig,
    MetricsConfig,
    PredictorConfig,
    RunConfig,
    TaskConfig,
)
from hybridcore.history import History
from hybridcore.plugins import Registry, load_registry
from hybridcore.records import speedup
from hybridcore.runner import run_task
from hybridcore.tasks.building import build_task
from hybridcore.training import RunResult
from hybridcore_nowcast.checkpoints import load_network
from hybridcore_nowcast.predictor import Nowcast

CASES: dict[str, tuple[str, str, str, float]] = {
    "logistic-sgd-small": ("numpy", "logistic", "sgd", 0.01),
    "logistic-sgd-lower": ("numpy", "logistic", "sgd", 0.3),
    "logistic-adam-lower": ("numpy", "logistic", "adam", 0.01),
    "quadratic-sgd-small": ("numpy", "quadratic", "sgd", 0.1),
    "cnn-adam-small": ("torch", "mnist-cnn", "adam", 1e-4),
    "cnn-adam-good": ("torch", "mnist-cnn", "adam", 1e-3),
    "digits-momentum-small": ("torch", "digits-mlp", "momentum", 1e-3),
}
"""Framework, task, optimizer and learning rate; no task with its optimizer was learned from."""

CONTROLLERS: dict[str, dict[str, Any]] = {
    "fixed": {"horizon": 20.0, "full_steps": 20, "correct_steps": 10},
    "threshold": {"full_steps": 20, "correct_steps": 10},
    "linucb": {"portfolio": ()},
}

PREDICTORS = ("drift", "nowcast", "nowcast, no decay")


def configuration(case: str, predictor: str, controller: str, steps: int, seed: int) -> HybridConfig:
    """One run's configuration; three windows of ten steps for `drift`, five for `nowcast`."""
    framework, task, optimizer, rate = CASES[case]
    options = {"optimizer": optimizer, "learning_rate": rate, **SMALL.get(task, {})}
    name = predictor.partition(",")[0]
    own = {"nowcast": {"decay_steps": 0 if "no decay" in predictor else steps}}
    return HybridConfig(
        run=RunConfig(framework=framework, steps=steps, seed=seed, evaluate_every=5),
        task=TaskConfig(name=task, options=options),
        controller=ControllerConfig(name=controller, options={controller: CONTROLLERS[controller]}),
        predictor=PredictorConfig(name=name, options=own if name == "nowcast" else {}),
        budget=BudgetConfig(count_seconds=False),
        metrics=MetricsConfig(step_every=1_000_000),
    )


def run(config: HybridConfig, arm: str, registry: Registry) -> RunResult:
    """Run it into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return run_task(config, arm=arm, out_dir=Path(folder) / "run", registry=registry)


def runs(steps: int, seeds: int, controllers: list[str], cases: list[str]) -> str:
    """Markdown: median speed-up and, in brackets, the smallest; then jumps kept of jumps tried."""
    registry = load_registry()
    lines = [
        "| case | controller | " + " | ".join(PREDICTORS) + " | nowcast over drift, by seed |",
        "|---" * (len(PREDICTORS) + 3) + "|",
    ]
    for case in cases:
        base = [
            run(configuration(case, "none", "fixed", steps, s), "baseline", registry) for s in range(seeds)
        ]
        for controller in controllers:
            cells, found = [], {}
            for predictor in PREDICTORS:
                done = [
                    run(configuration(case, predictor, controller, steps * 3 // 2, s), "hybrid", registry)
                    for s in range(seeds)
                ]
                gains = [speedup(r.evaluations, b.evaluations) for r, b in zip(done, base, strict=True)]
                found[predictor] = [gain.cost if gain is not None else 0.0 for gain in gains]
                kept = sum(int(r.summary["verdicts_kept"]) for r in done)
                tried = kept + sum(int(r.summary["verdicts_failed"]) for r in done)
                ratios = found[predictor]
                cells.append(f"{median(ratios):.2f} ({min(ratios):.2f}), {kept}/{tried}")
            pairs = zip(found["nowcast"], found["drift"], strict=True)
            paired = ", ".join(f"{a / b:.2f}" if b else "-" for a, b in pairs)
            lines.append(f"| {case} | {controller} | " + " | ".join(cells) + f" | {paired} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def cost() -> str:
    """Time of one prediction in real steps, on the torch tasks at their default sizes."""
    lines = ["| task | weights | one prediction, ms | in real steps |", "|---|---|---|---|"]
    registry = load_registry()
    for name in ("digits-mlp", "mnist-mlp", "mnist-cnn", "stdlib-gpt"):
        options = {"max_bytes": 600_000} if name == "stdlib-gpt" else {}
        config = HybridConfig(task=TaskConfig(name=name, options=options))
        task = build_task(config, registry)
        adapter, predictor = task.adapter, Nowcast()
        predictor.reset(adapter.layout, None)  # type: ignore[arg-type]
        history = History(adapter.layout, adapter.xp, HistoryConfig(windows=5), Nowcast.needs)
        times = []
        for batch in islice(task.batches, 50):
            history.before_step(adapter)
            start = time.process_time()
            adapter.train_step(batch)
            times.append(time.process_time() - start)
            history.after_step(adapter)
        predictions = []
        for _ in range(5):
            start = time.process_time()
            predictor.predict(history, 20.0, adapter.xp)
            predictions.append(time.process_time() - start)
        step, one = median(times), median(predictions)
        lines.append(f"| {name} | {adapter.layout.total:,} | {1000 * one:.1f} | {one / step:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["predictions", "runs", "cost"])
    parser.add_argument("--checkpoint", default="", help="judge this network instead of the shipped one")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--controllers", nargs="+", choices=CONTROLLERS, default=list(CONTROLLERS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    options = parser.parse_args()
    if "predictions" in options.parts:
        network = load_network(options.checkpoint)
        methods = {"nowcast": nowcast(network), "nowcast of 3": nowcast(network, 3), **BASELINES}
        print(table(judge(methods, steps=500)))
    if "runs" in options.parts:
        print(runs(options.steps, options.seeds, options.controllers, options.cases))
    if "cost" in options.parts:
        print(cost())


if __name__ == "__main__":
    main()
