"""What the engine's bookkeeping costs: a plain PyTorch loop against a run in which every jump is refused.

Both arms train the same model from the same weights on the same batches with the same optimizer, in turns
of a few steps in the order A B B A, so that drifts of the machine's speed cancel. Each turn of four gives
one ratio; the median and the quartiles of these ratios are shown.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--quick] [--json FILE] [--task NAME ...]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from hybridcore.config import HybridConfig, PredictorConfig
from hybridcore.engine import Engine
from hybridcore.plugins import load_framework, load_registry
from hybridcore.protocols import Problem
from hybridcore_torch.models import build_model
from hybridcore_torch.optimizers import build_optimizer

TURN_STEPS = {"digits-mlp": 100, "mnist-mlp": 40, "mnist-cnn": 10, "stdlib-gpt": 3}
"""Steps of one turn: a few tens to hundreds of milliseconds."""

DEFAULT_TASKS = ("digits-mlp", "mnist-cnn", "stdlib-gpt")


@attrs.frozen
class Overhead:
    """Ratio of the engine's time to the plain loop's on one task.

    Attributes:
        task: Registry name.
        steps: Steps that each arm took while measured.
        plain_ms: Median milliseconds of a plain step.
        ratio: Median ratio of paired turns.
        low: First quartile of the ratios.
        high: Third quartile.
    """

    task: str
    steps: int
    plain_ms: float
    ratio: float
    low: float
    high: float


def plain_arm(problem: Problem, device: str) -> Callable[[Any], None]:
    """A loop as one would write it without hybridcore."""
    built = build_model(problem, device)
    optimizer = build_optimizer(built.model.parameters(), problem.optimizer)

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        loss = built.loss_fn(built.model, batch).mean()
        loss.backward()
        loss.item()  # every training loop looks at its loss
        optimizer.step()

    return step


def engine_arm(problem: Problem, device: str) -> tuple[Callable[[Any], None], Engine]:
    """The same training under the engine, whose predictor refuses every jump."""
    run = load_framework("torch").build(problem, device)
    config = HybridConfig(predictor=PredictorConfig(name="none"))
    engine = Engine.from_config(run.adapter, config, probes=run.probes)

    def step(batch: Any) -> None:
        engine.step(batch)

    return step, engine


def measure(name: str, rounds: int, device: str) -> Overhead:
    """Paired, interleaved measurement on one task."""
    cls = load_registry().get("task", name)
    problem = cls(cls.Config()).problem(seed=0)
    plain = plain_arm(problem, device)
    hybrid, engine = engine_arm(problem, device)
    steps = TURN_STEPS.get(name, 10)
    stream = problem.batches()
    place = torch.device(device)

    def turn(step: Callable[[Any], None], batches: list[Any]) -> float:
        started = time.perf_counter()
        for batch in batches:
            step(batch)
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter() - started

    def batches() -> list[Any]:
        return [tuple(torch.as_tensor(a, device=place) for a in next(stream)) for _ in range(steps)]

    warm = batches()
    turn(plain, warm), turn(hybrid, warm)
    plain_seconds, ratios = [], []
    for _ in range(rounds):
        first, second = batches(), batches()
        a = turn(plain, first)
        b = turn(hybrid, first) + turn(hybrid, second)
        a += turn(plain, second)
        plain_seconds.append(a / (2 * steps))
        ratios.append(b / a)
    if engine.counts.jumps:
        raise AssertionError(f"{engine.counts.jumps} jumps were applied, none should be")
    low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return Overhead(
        name,
        2 * steps * rounds,
        1e3 * float(np.median(plain_seconds)),
        float(ratio),
        float(low),
        float(high),
    )


def start_times(repeats: int) -> dict[str, float]:
    """Median seconds of a fresh interpreter, of importing hybridcore in one, and of ``hybridcore --help``."""
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "import hybridcore": [sys.executable, "-c", "import hybridcore"],
        "hybridcore --help": [sys.executable, "-m", "hybridcore", "--help"],
    }
    times: dict[str, float] = {}
    for name, command in commands.items():
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            taken.append(time.perf_counter() - started)
        times[name] = float(np.median(taken))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--task", action="append", help=f"default: {', '.join(DEFAULT_TASKS)}")
    parser.add_argument("--rounds", type=int, default=40, help="turns A B B A per task")
    parser.add_argument("--quick", action="store_true", help="8 turns")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = 8 if options.quick else options.rounds
    print(f"{'task':<14}{'plain step':>12}{'engine/plain':>14}   quartiles")
    results = []
    for name in options.task or DEFAULT_TASKS:
        result = measure(name, rounds, options.device)
        results.append(result)
        print(
            f"{result.task:<14}{result.plain_ms:>9.2f} ms{result.ratio:>14.3f}   "
            f"{result.low:.3f} to {result.high:.3f}",
            flush=True,
        )
    starts = start_times(3 if options.quick else 9)
    for name, seconds in starts.items():
        print(f"{name:<20}{1e3 * seconds:>6.0f} ms")
    if options.json is not None:
        report = {
            "overhead": [attrs.asdict(result) for result in results],
            "start_seconds": starts,
            "rounds": rounds,
            "threads": options.threads,
            "device": options.device,
            "machine": {
                "processor": platform.machine(),
                "python": platform.python_version(),
                "torch": str(torch.__version__),
            },
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
