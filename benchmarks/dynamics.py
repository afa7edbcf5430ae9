"""What the dynamics models know about real runs: coverage, error, confidence against truth, cost per step.

Records the losses and features of real PyTorch runs without prediction, then plays each recording to each
model as the engine's keeper does: an observation every second step, training every 20 steps. Forecasts are
made right after training, for 16 steps, and held against what came. All models get four updates per 20 steps;
the last columns say what happens at the default share of 0.5 %: updates, and measured share of the seconds.

    OMP_NUM_THREADS=1 python benchmarks/dynamics.py [--quick] [--task NAME ...] [--figure FILE]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import array_api_compat.numpy as xp
import attrs
import numpy as np
import torch

from hybridcore.config import DynamicsConfig
from hybridcore.dynamics.keeper import DynamicsKeeper
from hybridcore.dynamics.level import LossLevel
from hybridcore.plugins import load_framework, load_registry
from hybridcore.protocols import Action, Phase, StepRecord
from hybridcore.state import Statistics

TASKS: dict[str, dict[str, Any]] = {
    "digits-mlp": {},
    "mnist-mlp": {},
    "stdlib-gpt": {"width": 32, "depth": 2, "context": 32},
    "poisson-pinn": {},
}
STEPS = {"stdlib-gpt": 0.5}
"""Share of the steps that dear tasks take."""
REAL = Action(Phase.FULL, 1, "")
HORIZON, BOUNDARY, UPDATES = 16, 20, 4


@attrs.frozen
class Recording:
    """Losses, features after each step, seconds per step, weights and examples of one run."""

    task: str
    losses: Any
    features: Any
    seconds: float
    parameters: int
    examples: int


@attrs.frozen
class Result:
    """One model on one recording; `said` and `held` are confidences and whether the loss was that near."""

    task: str
    model: str
    coverage: float
    skill: float
    calibration: float
    observe_us: float
    update_ms: float
    affordable: float
    share: float
    said: Any
    held: Any
    error: Any


def record(task: str, steps: int, seed: int) -> Recording:
    """Train without prediction."""
    cls = load_registry().get("task", task)
    problem = cls(cls.Config(**TASKS[task])).problem(seed=seed)
    run = load_framework("torch").build(problem, "cpu")
    statistics, losses, rows, examples = Statistics(), [], [], 0
    started = time.perf_counter()
    for t in range(1, steps + 1):
        result = run.adapter.train_step(next(run.batches))
        examples = max(examples, result.n_examples)
        rate = run.adapter.learning_rate
        statistics.observe(StepRecord(t, Phase.FULL, result.loss, result.grad_norm, rate, 0.0))
        losses.append(result.loss)
        rows.append(
            statistics.features(
                phase=Phase.FULL,
                phase_progress=t % BOUNDARY / BOUNDARY,
                progress=t / steps,
                straightness=0.0,
                moments=run.adapter.moments(),
            )
        )
        if run.schedule_step is not None:
            run.schedule_step()
    seconds = (time.perf_counter() - started) / steps
    layout = run.adapter.layout
    return Recording(task, np.array(losses), np.array(rows), seconds, layout.total, examples)


def play(recording: Recording, name: str) -> Result:
    """Feed, train and forecast."""
    model = load_registry().get("dynamics", name)()
    model.reset(["last-update"], np.random.default_rng(0), xp, 50 << 20)
    # A share that never binds: `max_updates` decides.
    config = DynamicsConfig(name=name, share=1.0, max_updates=UPDATES)
    keeper = DynamicsKeeper(model, config, parameters=10**12)
    losses, level = recording.losses, LossLevel()
    said, held, inside, error, naive, observing = [], [], [], [], [], 0.0
    scale = []
    for t, loss in enumerate(losses):
        level.observe(float(loss))
        row = recording.features[t]
        started = time.perf_counter()
        keeper.observe_step(
            StepRecord(t + 1, Phase.FULL, float(loss), 0.0, 0.0, recording.seconds), lambda row=row: row, REAL
        )
        observing += time.perf_counter() - started
        # Right after an observation, so that step t is the newest one that the model knows.
        if t % BOUNDARY == 0 and t:
            keeper.at_boundary(recording.seconds, BOUNDARY, recording.examples)
            if t >= len(losses) // 4 and t + HORIZON < len(losses):
                forecast = keeper.rollout(row, REAL, HORIZON)
                actual = losses[t + 1 : t + 1 + HORIZON]
                low, high = forecast.interval()
                # Between observations the forecast is interpolated; only its own places are judged.
                own = slice(1, None, 2)
                inside.append(((actual >= low) & (actual <= high))[own])
                miss = np.abs(forecast.mean - actual)
                error.append(miss[own])
                naive.append(np.abs(np.mean(losses[t - 15 : t + 1]) - actual)[own])
                said.append(forecast.confidence)
                held.append(miss[-1] <= 2.0 * level.scale)
                scale.append(level.scale)
    updates = max(keeper.updates, 1)
    affordable, share = by_default(recording, name)
    return Result(
        task=recording.task,
        model=name,
        coverage=float(np.mean(inside)),
        skill=1.0 - float(np.mean(error) / np.mean(naive)),
        calibration=float(np.mean(said) - np.mean(held)),
        observe_us=1e6 * observing / len(losses),
        update_ms=1e3 * keeper.seconds / updates,
        affordable=affordable,
        share=share,
        said=np.array(said),
        held=np.array(held),
        error=np.array([e[-1] for e in error]) / np.array(scale),
    )


def by_default(recording: Recording, name: str) -> tuple[float, float]:
    """Updates per 1000 steps, and seconds of training and observing as a share of the run's, by default."""
    model = load_registry().get("dynamics", name)()
    model.reset(["last-update"], np.random.default_rng(0), xp, 50 << 20)
    keeper = DynamicsKeeper(model, DynamicsConfig(name=name), recording.parameters)
    observing = 0.0
    for t, loss in enumerate(recording.losses):
        row = recording.features[t]
        step = StepRecord(t + 1, Phase.FULL, float(loss), 0.0, 0.0, recording.seconds)
        started = time.perf_counter()
        keeper.observe_step(step, lambda row=row: row, REAL)
        observing += time.perf_counter() - started
        if t % BOUNDARY == 0 and t:
            keeper.at_boundary(recording.seconds, BOUNDARY, recording.examples)
    steps = len(recording.losses)
    return 1000.0 * keeper.updates / steps, (keeper.seconds + observing) / (steps * recording.seconds)


def bins(said: Any, held: Any, error: Any) -> list[tuple[float, float, float, int]]:
    """Thirds of the forecasts by confidence: stated, true, error in running deviations, count."""
    order = np.argsort(said, kind="stable")
    return [
        (float(said[part].mean()), float(held[part].mean()), float(error[part].mean()), len(part))
        for part in np.array_split(order, 3)
        if len(part)
    ]


def draw(results: list[Result], path: Path) -> None:
    """Reliability of the confidence, and coverage of the 90 % intervals."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    names = list(dict.fromkeys(r.model for r in results))
    left.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=1, label="calibrated")
    for name in names:
        mine = [r for r in results if r.model == name]
        points = bins(*(np.concatenate([getattr(r, k) for r in mine]) for k in ("said", "held", "error")))
        left.plot([p[0] for p in points], [p[1] for p in points], "o-", label=name)
    left.set(
        xlabel="confidence stated",
        ylabel="share of losses within two deviations",
        title="Reliability, all tasks",
        xlim=(0.5, 1.0),
        ylim=(0.5, 1.02),
    )
    left.legend(frameon=False)
    tasks = list(dict.fromkeys(r.task for r in results))
    right.axhspan(0.8, 0.97, color="0.92", zorder=0)
    right.axhline(0.9, color="0.6", linewidth=1)
    for i, name in enumerate(names):
        values = [r.coverage for r in results if r.model == name]
        right.plot(np.arange(len(values)) + 0.15 * (i - 1), values, "o", label=name)
    right.set(
        xticks=range(len(tasks)), xticklabels=tasks, ylabel="coverage", ylim=(0.5, 1.02),
        title="90 % intervals, 2 to 16 steps ahead (grey: 80 to 97 %)",
    )  # fmt: skip
    right.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--task", action="append", choices=list(TASKS))
    parser.add_argument("--model", action="append", default=None)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0, help="of the recorded runs")
    parser.add_argument("--quick", action="store_true", help="1000 steps")
    parser.add_argument("--figure", type=Path, default=Path("dynamics.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = 1000 if options.quick else options.steps
    print(
        f"{'task':<14}{'model':<8}{'coverage':>9}{'skill':>8}{'conf-true':>10}"
        f"{'observe':>10}{'update':>10}{'step':>9}   by default: updates per 1000 steps, share"
    )
    results = []
    for task in options.task or TASKS:
        recording = record(task, int(steps * STEPS.get(task, 1.0)), options.seed)
        for name in options.model or ("linear", "mlp", "rssm"):
            r = play(recording, name)
            results.append(r)
            print(
                f"{r.task:<14}{r.model:<8}{r.coverage:>9.3f}{r.skill:>8.2f}{r.calibration:>+10.3f}"
                f"{r.observe_us:>7.1f} us{r.update_ms:>7.2f} ms{1e3 * recording.seconds:>6.1f} ms"
                f"{r.affordable:>12.1f}{100 * r.share:>10.2f} %",
                flush=True,
            )
    print("\nmodel   confidence stated / true / error in running deviations, by thirds of the forecasts")
    for name in dict.fromkeys(r.model for r in results):
        mine = [r for r in results if r.model == name]
        table = bins(*(np.concatenate([getattr(r, k) for r in mine]) for k in ("said", "held", "error")))
        print(f"{name:<8}" + "   ".join(f"{s:.2f} / {h:.2f} / {e:.2f}" for s, h, e, _ in table))
    draw(results, options.figure)


if __name__ == "__main__":
    main()
