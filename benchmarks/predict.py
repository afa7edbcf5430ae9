"""What prediction gains against the learning rate: one table, one figure.

Each setting is a training recipe: an optimizer at a learning rate, constant or with cosine decay. Its
baseline, the hybrid run and the controls share seeds, initial weights and batches and take turns. Read is
how many times sooner an arm reaches the baseline's own final validation loss; beside it stand the final
losses and that of the best baseline of the same optimizer, since a recipe that is far from its best rate is
easy to beat. Baselines at further rates are run so that the best one does not lie at the edge.

    python -m benchmarks.predict [--full | --curve] [--rivals all] [--data DIR] [--device cuda] [--workers N]

Runs that are finished in the folder of ``--out`` are kept, so that a call that was cut short goes on where it
stopped. ``--curve`` measures seven rates of three tasks beside Fast Forward, Schedule-Free and Prodigy. The
data folder holds ``fashion_mnist.npz``; without it the smaller `mnist-mlp` takes its place.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import attrs

from benchmarks.curve import CURVE_ARMS, curve, curve_table, draw_curve
from benchmarks.predict_table import draw, edges, markdown, report, rows, worst
from benchmarks.rivals import RIVALS
from benchmarks.settings import (
    ARMS,
    CURVE,
    FULL_ARMS,
    LARGE,
    LARGE_ARMS,
    ONE_THREAD,
    SETTINGS,
    Plan,
    Setting,
    large,
)
from hybridcore.arms import check_arm
from hybridcore.compare import Comparison, read_comparison
from hybridcore.errors import HybridCoreError
from hybridcore.metrics import plain_json

DATA_FILE = "fashion_mnist.npz"


def find_data(given: str | None) -> Path | None:
    """The Fashion-MNIST file in the folder that the option, or the environment, names; None without one."""
    named = given or os.environ.get("HYBRIDCORE_DATA")
    file = Path(named or "../shared/data") / DATA_FILE
    if file.is_file():
        return file.resolve()
    if named:
        sys.exit(f"there is no {DATA_FILE} in {named}; leave --data and HYBRIDCORE_DATA out to use mnist-mlp")
    return None


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--full", action="store_true", help="3 seeds, 2000 steps, all controls, all models")
    parser.add_argument("--curve", action="store_true", help="seven rates of three tasks beside the rivals")
    parser.add_argument(
        "--large", choices=("tiny", "10m", "124m", "all"), help="language models of 10 M and 124 M weights"
    )
    parser.add_argument("--large-steps", type=int, help="real steps of their runs; 400 and 150")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no job after this long")
    parser.add_argument("--only", action="append", help="settings whose name contains this; may be repeated")
    parser.add_argument("--seeds", type=int, help="number of seeds")
    parser.add_argument("--steps", type=int, help="real steps of the MLP's runs")
    parser.add_argument("--gpt-steps", type=int, help="real steps of the language models' runs")
    parser.add_argument("--pinn-steps", type=int, help="real steps of the physics-informed networks' runs")
    parser.add_argument("--data", help=f"folder of {DATA_FILE}")
    parser.add_argument("--controller", default="credit")
    parser.add_argument("--arms", help="arms beside the baseline, with commas, instead of the usual ones")
    parser.add_argument("--rivals", help=f"rivals with commas, or all: {', '.join(RIVALS)}")
    parser.add_argument("--set", action="append", default=[], help="dotted.key=value of every configuration")
    parser.add_argument("--framework", default="torch", help="framework that trains; rivals are PyTorch's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, help="processes of one thread; 2 on the CPU, else 1")
    parser.add_argument("--out", type=Path, help="folder for runs, tables and figures; finished runs stay")
    parser.add_argument("--read", type=Path, help="tabulate a folder of earlier runs instead of running")
    return parser.parse_args(arguments)


def arms_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Arms beside the baseline that the options ask for."""
    if options.curve:
        return CURVE_ARMS
    usual = LARGE_ARMS if options.large else FULL_ARMS if options.full else ARMS
    arms = options.arms.split(",") if options.arms is not None else usual
    rivals = list(RIVALS) if options.rivals == "all" else (options.rivals or "").split(",")
    chosen = tuple(arm for arm in (*arms, *rivals) if arm)
    for arm in chosen:
        if arm not in RIVALS:
            check_arm(arm)
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    full = options.full or options.curve
    language = options.gpt_steps or (1000 if full else 400)
    pinn = options.pinn_steps or (3000 if full else 1500)
    plan = Plan(
        steps={
            "mlp": options.steps or (2000 if full else 1200),
            **dict.fromkeys(("gpt", "lora", "finetune"), language),
            **dict.fromkeys(("convection", "poisson"), pinn),
            **{s.model: options.large_steps or (150 if "124m" in s.model else 400) for s in LARGE},
            **{s.model: options.large_steps or 20 for s in large("tiny")},
        },
        evaluations=50 if full else 30,
        validation=10_000 if options.full else 2_000,
        seeds=tuple(range(options.seeds or (3 if options.full else 1))),
        arms=arms_of(options),
        controller=options.controller,
        device=options.device,
        data=find_data(options.data),
        overrides=(f"run.framework={options.framework}", *options.set),
        deadline=time.time() + 60.0 * options.minutes,
    )
    wanted = wanted_settings(options)
    folder = options.read or options.out or Path("runs") / time.strftime("predict-%Y%m%d-%H%M%S")
    started, complete = time.monotonic(), True
    if options.read is None:
        workers = options.workers or (2 if options.device == "cpu" else 1)
        complete = run_all(plan, wanted, folder, workers, once=options.curve)
    tabulate_all(plan, options, wanted, folder, time.monotonic() - started)
    return 0 if complete else 1


def wanted_settings(options: argparse.Namespace) -> list[Setting]:
    """Settings that the options ask for."""
    if options.curve:
        wanted = list(CURVE)
    elif options.large:
        wanted = list(large("tiny") if options.large == "tiny" else LARGE)
        wanted = [s for s in wanted if options.large in ("all", s.model.partition("-")[2])]
    else:
        everything = options.full or options.device != "cpu" or options.only
        wanted = [s for s in SETTINGS if everything or s.model == "mlp"]
    if options.only:
        wanted = [s for s in wanted if any(word in s.name for word in options.only)]
    return wanted


def tabulate_all(
    plan: Plan, options: argparse.Namespace, wanted: Sequence[Setting], folder: Path, seconds: float
) -> None:
    """Print tables and write files from what is finished in a folder."""
    if options.curve:
        points = curve(wanted, plan.arms, folder)
        if points:
            print(curve_table(points, plan.arms))
            draw_curve(points, plan.arms, folder / "curve.png", plan.controller)
            data = plain_json([{"name": p.setting.name, **attrs.asdict(p)} for p in points])
            (folder / "curve.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
            print(f"runs, curve.json and curve.png in {folder}")
        return
    results = {s: found for s in wanted if (found := finished_comparison(folder / s.name)) is not None}
    table = rows(results)
    if not table:
        return
    print(markdown(table) + "\n\n" + worst(table))
    for name in edges(results):
        print(f"the best rate is at the edge of those tried: {name}")
    (folder / "predict.json").write_text(
        json.dumps(report(table, plan, seconds), indent=2) + "\n", encoding="utf-8"
    )
    draw(table, folder / "predict.png")
    print(f"runs, predict.json and predict.png in {folder}")


def finished_comparison(folder: Path) -> Comparison | None:
    """The runs of a setting; None where no baseline, or nothing to compare it with, is finished."""
    if next(folder.glob("*/*/metrics.jsonl"), None) is None:
        return None
    result = read_comparison(folder)
    return result if any(row.arm == "baseline" for row in result.rows) else None


def jobs_of(plan: Plan, wanted: Sequence[Setting], *, once: bool) -> list[tuple[Setting, int, Plan]]:
    """What a worker runs at a time: a setting with one seed.

    Args:
        plan: How.
        wanted: The settings.
        once: Run rivals that read no rate at one rate of each optimizer only.
    """
    jobs = []
    served: set[tuple[str, str]] = set()
    for setting in wanted:
        family, own = (setting.model, setting.optimizer), plan
        if once and family in served:
            free = {arm for arm in plan.arms if arm in RIVALS and RIVALS[arm].own_rate}
            own = attrs.evolve(plan, arms=tuple(arm for arm in plan.arms if arm not in free))
        served.add(family)
        large = "-" in setting.model
        jobs += [(setting, seed, own) for seed in plan.seeds[: 1 if large and not setting.shown else None]]
    # Large models go seed by seed, so that a call that ends early leaves whole seeds behind.
    return sorted(jobs, key=lambda job: (job[1] if "-" in job[0].model else 0, -work(job[2], job[0])))


def work(plan: Plan, setting: Setting) -> float:
    """About how long a job takes, so that the longest come first."""
    step = {"mlp": 4.0, "convection": 5.0, "poisson": 5.0}.get(setting.model, 90.0)
    return step * plan.steps[setting.model] * len(plan.arms_of(setting))


def run_all(plan: Plan, wanted: Sequence[Setting], folder: Path, workers: int, *, once: bool = False) -> bool:
    """Run all settings in worker processes, the longest first; False where some did not come to their end.

    Args:
        plan: How.
        wanted: The settings.
        folder: Folder with one sub-folder for each setting.
        workers: Processes.
        once: See `jobs_of`.
    """
    os.environ.update(ONE_THREAD)
    started = time.monotonic()
    plan.prepare(tuple(wanted))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {
            pool.submit(own.run, setting, seed, folder / setting.name): f"{setting.name} seed {seed}"
            for setting, seed, own in jobs_of(plan, wanted, once=once)
        }
        whole = True
        try:
            for count, job in enumerate(as_completed(jobs), 1):
                try:
                    word = "done" if job.result() else "cut short"
                    whole = whole and word == "done"
                except HybridCoreError as error:
                    whole, word = False, f"failed: {error}"
                seconds = time.monotonic() - started
                line = f"{count}/{len(jobs)} {jobs[job]} {word} after {seconds:.0f} s"
                print(line, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            return False
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return whole


if __name__ == "__main__":
    sys.exit(main())
