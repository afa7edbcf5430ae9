"""Correctors side by side: validation loss after each Correct phase, against no correction at equal cost.

Every corrector runs with the same task, seed, controller and predictor as the run without correction. After
each verdict the validation loss is measured outside the books; the loss of the plain run is read off its own
curve at the same cost (real steps, probes, failed trials), and the mean of ``log(loss / plain loss)`` over
these moments is the corrector's effect: negative is better. No decision depends on a clock, so that the
table can be made again exactly. The budget is wide and nothing pauses, so that jumps happen at all.

    OMP_NUM_THREADS=1 python benchmarks/correction.py [--steps N] [--seeds N] [--json FILE]
    OMP_NUM_THREADS=1 python benchmarks/correction.py --store
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import attrs
import numpy as np

from hybridcore.components import check_config
from hybridcore.correction.loss_level import LossLevel
from hybridcore.correction.store import ResidualStore
from hybridcore.engine import Engine
from hybridcore.events import Event, EventBus
from hybridcore.layout import ParamLayout
from hybridcore.plugins import Registry, load_registry
from hybridcore.tasks.building import build_task

TASKS = ("digits-mlp", "mnist-mlp", "poisson-pinn")
CONTROLLERS = {"fixed": "drift", "threshold": "last-update", "credit": "last-update"}
CORRECTORS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "loss-level": {"name": "loss-level"},
    "gains": {"name": "gains"},
    "gains, relative": {"name": "gains", "gains": {"relative": True}},
    "gains, rank 4": {"name": "gains", "gains": {"rank": 4}},
}


@attrs.frozen
class Trace:
    """What one run left behind.

    Attributes:
        cost: Cost at each verdict, ascending.
        loss: Validation loss there.
        summary: The engine's counts.
        store: Its residuals.
    """

    cost: tuple[float, ...]
    loss: tuple[float, ...]
    summary: dict[str, Any]
    store: ResidualStore


def train(
    task: str, controller: str, correction: dict[str, Any], seed: int, steps: int, registry: Registry
) -> Trace:
    """Train with an engine of its own and measure the validation loss at each verdict."""
    config = check_config(
        {
            "run": {"seed": seed, "steps": steps, "framework": "torch"},
            "task": {"name": task},
            "controller": {"name": controller},
            "predictor": {"name": CONTROLLERS[controller]},
            "budget": {"share": 1.0, "grace_steps": 1e6, "backoff_steps": 0},
            "correction": correction,
        },
        registry,
    )
    built = build_task(config, registry)
    places: list[tuple[float, float]] = []

    def measure() -> None:
        found = built.evaluate()
        places.append((engine.counts.cost, float(found if isinstance(found, float) else found["loss"])))

    bus = EventBus()
    engine = Engine.from_config(built.adapter, config, probes=built.probes, registry=registry, events=bus)
    bus.listen(lambda event, _: measure() if event is Event.VERDICT else None)
    measure()
    while engine.counts.cost < steps:
        engine.step(next(built.batches))
        if built.schedule_step is not None and engine.needs_backward:
            built.schedule_step()
    summary = engine.finish()
    measure()
    return Trace(*zip(*places, strict=True), summary, engine.corrections.store)  # type: ignore[arg-type]


def effect(run: Trace, plain: Trace) -> float:
    """Mean of ``log(loss / plain loss)`` at equal cost after the verdicts of `run`."""
    inside = [(c, v) for c, v in zip(run.cost, run.loss, strict=True) if 0.0 < c <= plain.cost[-1]]
    wanted = np.interp([c for c, _ in inside], plain.cost, np.log(plain.loss))
    return float(np.mean([math.log(v) - w for (_, v), w in zip(inside, wanted, strict=True)]))


def replay(store: ResidualStore) -> tuple[float, float]:
    """Mean absolute error of predicted and of corrected loss changes, over the loss (F27)."""
    corrector, seen = LossLevel(), ResidualStore()
    corrector.reset(ParamLayout.plan([]), seen)
    raw, corrected = [], []
    for residual in store:
        place, came = residual.situation, residual.realised_change
        if math.isfinite(place.predicted_change) and math.isfinite(came):
            raw.append(abs(place.predicted_change - came) / place.loss)
            corrected.append(abs(corrector.expected(place) - came) / place.loss)
        corrector.observe(residual)
        seen.add(residual)
    return (mean(raw), mean(corrected)) if raw else (math.nan, math.nan)


def table(options: argparse.Namespace, registry: Registry) -> list[dict[str, Any]]:
    """One row per task, controller and corrector."""
    rows = []
    for task in options.tasks:
        for controller in options.controllers:
            plain = [train(task, controller, {}, s, options.steps, registry) for s in range(options.seeds)]
            for name in options.correctors:
                if name == "none":
                    continue
                runs = [
                    train(task, controller, CORRECTORS[name], s, options.steps, registry)
                    for s in range(options.seeds)
                ]
                found = [effect(r, p) for r, p in zip(runs, plain, strict=True)]
                errors = [replay(r.store) for r in runs]
                rows.append(
                    {
                        "task": task,
                        "controller": controller,
                        "corrector": name,
                        "effects": found,
                        "error_raw": mean(e[0] for e in errors),
                        "error_corrected": mean(e[1] for e in errors),
                        "plain_loss": mean(p.loss[-1] for p in plain),
                        "loss": mean(r.loss[-1] for r in runs),
                    }
                    | {
                        key: mean(r.summary[key] for r in runs)
                        for key in ("jumps", "verdicts_failed", "corrections", "corrections_reverted")
                    }
                )
                print(line(rows[-1]), flush=True)
    return rows


HEAD = (
    "| task | controller | corrector | loss at equal cost, mean (per seed) | jumps | failed "
    "| corrections kept, reverted | error of predicted loss change: raw, corrected |"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    seeds = ", ".join(f"{100 * math.expm1(e):+.1f}" for e in row["effects"])
    cells = [
        row["task"],
        row["controller"],
        row["corrector"],
        f"{100 * math.expm1(mean(row['effects'])):+.1f} % ({seeds})",
        f"{row['jumps']:.0f}",
        f"{row['verdicts_failed']:.1f}",
        f"{row['corrections']:.1f}, {row['corrections_reverted']:.1f}",
        f"{row['error_raw']:.3f}, {row['error_corrected']:.3f}"
        if row["error_raw"] == row["error_raw"]
        else "-",
    ]
    return "| " + " | ".join(cells) + " |"


def totals(rows: Sequence[dict[str, Any]]) -> str:
    """Mean effect of each corrector and controller over all tasks and seeds, with its standard error."""
    lines = [
        "| corrector | controller | loss at equal cost, mean | standard error | runs better |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["corrector"] for r in rows):
        for controller in (*dict.fromkeys(r["controller"] for r in rows), "all"):
            found = [
                e
                for r in rows
                if r["corrector"] == name and controller in (r["controller"], "all")
                for e in r["effects"]
            ]
            error = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
            better = f"{sum(e < 0 for e in found)} of {len(found)}"
            change = f"{100 * math.expm1(mean(found)):+.1f} % | {100 * error:.1f} %"
            lines.append(f"| {name} | {controller} | {change} | {better} |")
    return "\n".join(lines)


def second_run(options: argparse.Namespace, registry: Registry) -> list[dict[str, Any]]:
    """Runs that begin with the residuals of another seed's run, against runs that begin with none."""
    rows = []
    for task in options.tasks:
        for name in options.correctors:
            if name == "none":
                continue
            found, raws, correcteds = [], [], []
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    stored = CORRECTORS[name] | {"store": str(Path(folder) / "store")}
                    train(task, "fixed", stored, 100 + seed, options.steps, registry)
                    second = train(task, "fixed", stored, seed, options.steps, registry)
                fresh = train(task, "fixed", CORRECTORS[name], seed, options.steps, registry)
                found.append(effect(second, fresh))
                before = len(second.store) - len(fresh.store)
                _, alone = replay(fresh.store)
                corrector, seen = LossLevel(), ResidualStore()
                corrector.reset(ParamLayout.plan([]), seen)
                errors = []
                for i, residual in enumerate(second.store):
                    place, came = residual.situation, residual.realised_change
                    known = math.isfinite(place.predicted_change) and math.isfinite(came)
                    if i >= before and known:
                        errors.append(abs(corrector.expected(place) - came) / place.loss)
                    corrector.observe(residual)
                    seen.add(residual)
                raws.append(alone)
                correcteds.append(mean(errors) if errors else math.nan)
            rows.append({"task": task, "corrector": name, "effects": found})
            seeds = ", ".join(f"{100 * math.expm1(e):+.1f}" for e in found)
            print(
                f"| {task} | {name} | {100 * math.expm1(mean(found)):+.1f} % ({seeds}) "
                f"| {mean(raws):.3f}, {mean(correcteds):.3f} |",
                flush=True,
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=300, help="cost of a run, in real steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--controllers", nargs="+", default=tuple(CONTROLLERS))
    parser.add_argument("--correctors", nargs="+", default=tuple(CORRECTORS), choices=tuple(CORRECTORS))
    parser.add_argument("--store", action="store_true", help="measure the second run with a persistent store")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    registry = load_registry()
    if options.store:
        print("| task | corrector | loss of the second run at equal cost | error: fresh, with the store |")
        print("|---|---|---|---|")
        rows = second_run(options, registry)
    else:
        print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|")
        rows = table(options, registry)
        print("\n" + totals(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
