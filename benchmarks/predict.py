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
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import attrs

from benchmarks.curve import CURVE_ARMS, curve, curve_table, draw_curve
from benchmarks.rivals import RIVALS
from benchmarks.settings import ARMS, CURVE, FULL_ARMS, LARGE, LARGE_ARMS, SETTINGS, Plan, Setting, large
from hybridcore.arms import check_arm
from hybridcore.compare import Comparison, read_comparison
from hybridcore.errors import HybridCoreError
from hybridcore.metrics import plain_json
from hybridcore.records import median_speedup, speedup

DATA_FILE = "fashion_mnist.npz"

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
"""Environment of a worker, read by the frameworks when it starts."""


@attrs.frozen
class Row:
    """A setting's outcome; speed-ups are medians over seeds of ratios to the paired baseline.

    Attributes:
        setting: The recipe.
        rate_over_best: Its learning rate over the best one of the same optimizer and schedule.
        tuned_loss: Final loss of the best baseline of the same model and optimizer.
        final: Median final validation loss by arm.
        cost: Speed-up in cost by arm; 0 where the target is missed.
        cost_low: The smallest over the seeds.
        wall: Speed-up in wall-clock time by arm.
        tuned_cost: Speed-up in cost of the best baseline of the same model and optimizer, on its seeds.
    """

    setting: Setting
    rate_over_best: float
    tuned_loss: float
    final: dict[str, float]
    cost: dict[str, float]
    cost_low: dict[str, float]
    wall: dict[str, float]
    tuned_cost: float = math.nan

    @property
    def best_control(self) -> tuple[str, float]:
        """The control arm that reaches the target first, and its speed-up in cost."""
        return self._best(lambda arm: arm not in RIVALS)

    @property
    def best_rival(self) -> tuple[str, float]:
        """The same among the rivals."""
        return self._best(lambda arm: arm in RIVALS)

    def _best(self, among: Callable[[str], bool]) -> tuple[str, float]:
        others = {arm: g for arm, g in self.cost.items() if not arm.startswith(("hybrid", "baseline"))}
        found = {arm: g for arm, g in others.items() if among(arm) and not math.isnan(g)}
        best = max(found, key=lambda arm: found[arm], default="-")
        return best, found.get(best, math.nan)


def rows(results: Mapping[Setting, Comparison]) -> list[Row]:
    """Rows of the table from the comparisons of all settings."""
    losses = {setting: result.row("baseline").final_loss for setting, result in results.items()}

    def best(setting: Setting, *fields: str) -> Setting:
        alike = [s for s in losses if all(getattr(s, f) == getattr(setting, f) for f in fields)]
        return min(alike, key=lambda s: _or_infinite(losses[s]))

    def tuned_cost(setting: Setting) -> float:
        other = results[best(setting, "model", "optimizer")].records
        tuned = {r.seed: r.evaluations for r in other if r.arm == "baseline"}
        own = {r.seed: r.evaluations for r in results[setting].records if r.arm == "baseline"}
        gains = [speedup(tuned[seed], own[seed]) for seed in tuned.keys() & own.keys()]
        return median_speedup([gain.cost for gain in gains if gain is not None])

    table = []
    for setting, result in results.items():
        if setting.shown and setting in losses:
            arms = {row.arm: row for row in result.rows}
            table.append(
                Row(
                    setting,
                    setting.rate / best(setting, "model", "optimizer", "schedule").rate,
                    losses[best(setting, "model", "optimizer")],
                    {arm: row.final_loss for arm, row in arms.items()},
                    {arm: row.speedup_cost for arm, row in arms.items()},
                    {arm: row.speedup_cost_low for arm, row in arms.items()},
                    {arm: row.speedup_wall for arm, row in arms.items()},
                    tuned_cost(setting),
                )
            )
    return table


def edges(results: Mapping[Setting, Comparison]) -> list[str]:
    """Names of the best recipes whose rate is the largest or smallest tried: another may be better."""
    groups: dict[tuple[str, str, str], list[Setting]] = {}
    for setting in results:
        groups.setdefault((setting.model, setting.optimizer, setting.schedule), []).append(setting)
    found = []
    for alike in groups.values():
        best = min(alike, key=lambda s: _or_infinite(results[s].row("baseline").final_loss))
        if best.rate in (max(s.rate for s in alike), min(s.rate for s in alike)):
            found.append(best.name)
    return found


def _or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def markdown(table: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = (
        "| setting | rate / best | final: baseline | hybrid | hybrid, averaged | baseline, averaged "
        "| tuned | speed-up, cost: hybrid | hybrid, averaged | baseline, averaged | tuned | best control "
        "| best rival | speed-up, wall: hybrid | hybrid, averaged |"
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in table:
        control, gain = row.best_control
        rival, rival_gain = row.best_rival
        cells = [
            row.setting.name,
            f"{row.rate_over_best:.3g}",
            *(
                _loss(row.final.get(arm, math.nan))
                for arm in ("baseline", "hybrid", "hybrid, averaged", "baseline, averaged")
            ),
            _loss(row.tuned_loss),
            *(_gain(row.cost.get(arm)) for arm in ("hybrid", "hybrid, averaged", "baseline, averaged")),
            _gain(row.tuned_cost),
            f"{_gain(gain)} {control}",
            f"{_gain(rival_gain)} {rival}",
            *(_gain(row.wall.get(arm)) for arm in ("hybrid", "hybrid, averaged")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def worst(table: Iterable[Row]) -> str:
    """The row in which the hybrid gains least."""
    whole = [row for row in table if "hybrid" in row.cost]
    if not whole:
        return "no row has its hybrid run yet"
    row = min(whole, key=lambda r: r.cost["hybrid"])
    return (
        f"worst row: {row.setting.name}, hybrid {_gain(row.cost['hybrid'])} in cost, "
        f"final loss {_loss(row.final['hybrid'])} against {_loss(row.final['baseline'])}"
    )


def _loss(value: float) -> str:
    if not math.isfinite(value):
        return "diverged"
    return f"{value:.4f}" if 0.01 <= abs(value) < 1e4 or value == 0.0 else f"{value:.2g}"


def _gain(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.2f}x" if value > 0 else "missed"


def draw(table: Sequence[Row], path: Path) -> None:
    """Speed-up against the learning rate over the best one; missed targets lie on the lower edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401 - the backend of savefig
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 6.0), layout="constrained")
    axis = figure.subplots()
    floor, families = 0.4, dict.fromkeys((r.setting.model, r.setting.optimizer) for r in table)
    looks = {"hybrid": ("o", 1.0), "hybrid, averaged": ("^", 0.75), "baseline, averaged": ("x", 0.75)}
    for (model, optimizer), colour in zip(families, (f"C{i}" for i in range(10)), strict=False):
        own = [r for r in table if (r.setting.model, r.setting.optimizer) == (model, optimizer)]
        for arm, (marker, alpha) in looks.items():
            for schedule, fill in (("constant", colour), ("cosine", "none")):
                found = sorted(
                    (r.rate_over_best, max(r.cost[arm], floor))
                    for r in own
                    if r.setting.schedule == schedule and not math.isnan(r.cost.get(arm, math.nan))
                )
                if found:
                    axis.plot(
                        *zip(*found, strict=True),
                        marker=marker,
                        markersize=9,
                        color=colour,
                        alpha=alpha,
                        markerfacecolor=fill,
                        linestyle="-" if arm == "hybrid" and schedule == "constant" else "none",
                        label=f"{model} {optimizer}, {arm}" if schedule == "constant" else None,
                    )
    axis.axhline(1.0, color="#222222", linewidth=1, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel="learning rate / best learning rate")
    axis.set(ylabel="speed-up in cost to the baseline's final loss")
    axis.set_ylim(bottom=0.9 * floor)
    axis.yaxis.set_major_formatter("{x:g}x")
    axis.set_title("hollow: cosine decay; on the lower edge: target missed", fontsize=10)
    axis.grid(alpha=0.25, which="both")
    figure.legend(fontsize=7, loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def report(table: Sequence[Row], plan: Plan, seconds: float) -> dict[str, Any]:
    """Everything as plain data."""
    data: dict[str, Any] = plain_json(
        {
            "rows": [
                {
                    "name": row.setting.name,
                    "best_control": row.best_control,
                    "best_rival": row.best_rival,
                    **attrs.asdict(row),
                }
                for row in table
            ],
            "steps": plan.steps,
            "validation": plan.validation,
            "seeds": plan.seeds,
            "controller": plan.controller,
            "overrides": plan.overrides,
            "device": plan.device,
            "data": "fashion-mnist" if plan.data is not None else "mnist",
            "seconds": seconds,
            "python": platform.python_version(),
        }
    )
    return data


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
