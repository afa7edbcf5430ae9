"""Built-in predictors side by side: cost to the paired baseline's final validation loss on reference tasks.

Every predictor runs with the same controller, the same settings and the same seeds. The baseline is the same
optimizer without prediction; runs with prediction may take half as many real steps again, so that a slower
one shows as slower and not as a miss. Cost counts real steps, probes and failed trials, in units of a real
step; no decision depends on a clock, so that the table can be made again exactly.

    OMP_NUM_THREADS=1 python benchmarks/predictors.py [--controller NAME] [--steps N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import attrs

from hybridcore.config import (
    BudgetConfig,
    ControllerConfig,
    HybridConfig,
    MetricsConfig,
    PredictorConfig,
    RunConfig,
    TaskConfig,
)
from hybridcore.plugins import Registry, load_registry
from hybridcore.records import speedup
from hybridcore.runner import run_task
from hybridcore.training import RunResult

CASES: dict[str, tuple[str, str, float, str]] = {
    "quadratic-sgd-small": ("quadratic", "sgd", 0.1, "1/19"),
    "quadratic-sgd-good": ("quadratic", "sgd", 1.0, "1/2"),
    "quadratic-adam-small": ("quadratic", "adam", 0.01, "1/10"),
    "quadratic-adam-good": ("quadratic", "adam", 0.1, "1"),
    "logistic-sgd-small": ("logistic", "sgd", 0.01, "1/300"),
    "logistic-sgd-lower": ("logistic", "sgd", 0.3, "1/10"),
    "logistic-sgd-good": ("logistic", "sgd", 3.0, "1"),
    "logistic-adam-small": ("logistic", "adam", 0.001, "1/100"),
    "logistic-adam-lower": ("logistic", "adam", 0.01, "1/10"),
    "logistic-adam-good": ("logistic", "adam", 0.1, "1"),
}
"""Task, optimizer, learning rate, and that rate over the best of a sweep over 800 steps."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "frozen": ("frozen", {}),
    "last-update": ("last-update", {}),
    "drift": ("drift", {}),
    "nesterov": ("outer-momentum", {}),
    "ema": ("outer-momentum", {"mode": "ema"}),
    "lookahead": ("outer-momentum", {"mode": "lookahead"}),
    "average": ("average", {}),
    "spectral": ("spectral", {}),
    "anderson": ("anderson", {}),
    "latent": ("latent", {}),
    "subspace-newton": ("subspace-newton", {}),
}
"""Column to predictor and its options."""

CONTROLLERS: dict[str, dict[str, Any]] = {
    "fixed": {"horizon": 20.0, "full_steps": 20, "correct_steps": 10},
    "threshold": {"full_steps": 20, "correct_steps": 10},
}


@attrs.frozen
class Cell:
    """One predictor on one case, over all seeds.

    Attributes:
        speedup: Median ratio of the baseline's cost to the run's; 0 counts for a miss.
        low: The smallest.
        jumps: Jumps applied, median.
        failed: Trials undone, median.
        probes: Probes, median.
        final_loss: Final validation loss over the baseline's, median.
    """

    speedup: float
    low: float
    jumps: float
    failed: float
    probes: float
    final_loss: float


def configuration(case: str, variant: str, controller: str, steps: int, seed: int) -> HybridConfig:
    """One run's configuration."""
    task, optimizer, rate, _ = CASES[case]
    predictor, options = VARIANTS[variant]
    return HybridConfig(
        run=RunConfig(framework="numpy", steps=steps, seed=seed, evaluate_every=5),
        task=TaskConfig(name=task, options={"optimizer": optimizer, "learning_rate": rate}),
        controller=ControllerConfig(name=controller, options={controller: CONTROLLERS[controller]}),
        predictor=PredictorConfig(name=predictor, options={predictor: options}),
        budget=BudgetConfig(count_seconds=False),
        metrics=MetricsConfig(step_every=1_000_000),
    )


def run(config: HybridConfig, arm: str, registry: Registry) -> RunResult:
    """Run it into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return run_task(config, arm=arm, out_dir=Path(folder) / "run", registry=registry)


def measure(case: str, variants: list[str], controller: str, steps: int, seeds: int) -> dict[str, Cell]:
    """All predictors on one case."""
    registry = load_registry(block=())
    baselines = [
        run(configuration(case, "none", controller, steps, s), "baseline", registry) for s in range(seeds)
    ]
    cells = {}
    for variant in variants:
        runs = [
            run(configuration(case, variant, controller, steps * 3 // 2, s), "hybrid", registry)
            for s in range(seeds)
        ]
        gains = [speedup(r.evaluations, b.evaluations) for r, b in zip(runs, baselines, strict=True)]
        ratios = [gain.cost if gain is not None else math.nan for gain in gains]

        def typical(key: str, runs: list[RunResult] = runs) -> float:
            return float(median(float(r.summary[key]) for r in runs))

        cells[variant] = Cell(
            median(ratios),
            min(ratios),
            typical("jumps"),
            typical("verdicts_failed"),
            typical("probes"),
            median(r.final_loss / b.final_loss for r, b in zip(runs, baselines, strict=True)),
        )
    return cells


def table(results: dict[str, dict[str, Cell]]) -> str:
    """Markdown: predictors in rows, cases in columns; median speed-up and, in brackets, the smallest."""
    cases = list(results)
    lines = [
        "| predictor | " + " | ".join(cases) + " |",
        "|---" * (len(cases) + 1) + "|",
        "| *rate over the best* | " + " | ".join(CASES[c][3] for c in cases) + " |",
    ]
    for variant in next(iter(results.values())):
        cells = [results[case][variant] for case in cases]
        lines.append(f"| {variant} | " + " | ".join(f"{c.speedup:.2f} ({c.low:.2f})" for c in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--controller", choices=sorted(CONTROLLERS), default="fixed")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--predictors", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {
        case: measure(case, options.predictors, options.controller, options.steps, options.seeds)
        for case in options.cases
    }
    print(table(results))
    if options.json is not None:
        plain = {case: {v: attrs.asdict(c) for v, c in cells.items()} for case, cells in results.items()}
        options.json.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
