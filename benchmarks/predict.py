"""What prediction gains against the learning rate: one table, one figure.

Each setting is a training recipe: an optimizer at a learning rate, constant or with cosine decay. Its
baseline, the hybrid run and the controls share seeds, initial weights and batches and take turns. Read is
how many times sooner an arm reaches the baseline's own final validation loss; beside it stand the final
losses and that of the best baseline of the same optimizer, since a recipe that is far from its best rate is
easy to beat. Baselines at further rates are run so that the best one does not lie at the edge.

    python -m benchmarks.predict [--full] [--data DIR] [--device cuda] [--workers N]

The data folder holds ``fashion_mnist.npz``; without it the smaller `mnist-mlp` takes its place.
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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import attrs

from hybridcore.compare import Comparison, compare, read_comparison
from hybridcore.components import check_config
from hybridcore.config import HybridConfig
from hybridcore.configfile import apply_overrides
from hybridcore.metrics import plain_json

DATA_FILE = "fashion_mnist.npz"

ARMS = ("hybrid", "random", "frozen")
FULL_ARMS = (*ARMS, "lr-x2", "lr-x4", "lr-x10")


@attrs.frozen
class Setting:
    """A training recipe.

    Attributes:
        model: ``"mlp"`` or ``"gpt"``.
        optimizer: Optimizer in the tasks' words.
        rate: Learning rate, the peak where it decays.
        schedule: ``"constant"`` or ``"cosine"``.
        shown: Whether it is a row; others only help to find the best rate.
    """

    model: str
    optimizer: str
    rate: float
    schedule: str = "constant"
    shown: bool = True

    @property
    def name(self) -> str:
        """Name of the row and of its folder."""
        return f"{self.model}-{self.optimizer}-{self.rate:g}" + ("-cosine" * (self.schedule == "cosine"))


SETTINGS = (
    Setting("mlp", "sgd", 1e-3),
    Setting("mlp", "sgd", 1e-2),
    Setting("mlp", "sgd", 0.1),
    Setting("mlp", "sgd", 0.3),
    Setting("mlp", "sgd", 1.0, shown=False),
    Setting("mlp", "sgd", 0.3, "cosine"),
    Setting("mlp", "sgd", 0.1, "cosine", shown=False),
    Setting("mlp", "sgd", 1.0, "cosine", shown=False),
    Setting("mlp", "momentum", 1e-3),
    Setting("mlp", "momentum", 1e-2, shown=False),
    Setting("mlp", "momentum", 0.03),
    Setting("mlp", "momentum", 0.1, shown=False),
    Setting("mlp", "momentum", 0.1, "cosine"),
    Setting("mlp", "momentum", 0.03, "cosine", shown=False),
    Setting("mlp", "momentum", 0.3, "cosine", shown=False),
    Setting("mlp", "adam", 1e-4),
    Setting("mlp", "adam", 1e-3),
    Setting("mlp", "adam", 3e-3, shown=False),
    Setting("mlp", "adam", 1e-2, shown=False),
    Setting("mlp", "adam", 3e-3, "cosine"),
    Setting("mlp", "adam", 1e-3, "cosine", shown=False),
    Setting("mlp", "adam", 1e-2, "cosine", shown=False),
    Setting("gpt", "adamw", 2.5e-4),
    Setting("gpt", "adamw", 1e-3),
    Setting("gpt", "adamw", 3e-3, shown=False),
    Setting("gpt", "adamw", 1e-2, shown=False),
    Setting("gpt", "adamw", 3e-3, "cosine"),
    Setting("gpt", "adamw", 1e-3, "cosine", shown=False),
    Setting("gpt", "adamw", 1e-2, "cosine", shown=False),
)


@attrs.frozen
class Plan:
    """How the settings are run.

    Attributes:
        steps: Real steps of a run, by model.
        evaluations: Evaluations in a run.
        validation: Images of Fashion-MNIST that an evaluation reads.
        seeds: Seeds of every arm.
        arms: Arms beside the baseline.
        controller: Registry name of the hybrid's controller.
        device: Device in PyTorch's words.
        data: The Fashion-MNIST file, or None for `mnist-mlp`.
        overrides: Settings ``dotted.key=value`` of every configuration.
    """

    steps: Mapping[str, int]
    evaluations: int
    validation: int
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    controller: str
    device: str
    data: Path | None
    overrides: tuple[str, ...] = ()

    def configuration(self, setting: Setting) -> HybridConfig:
        """The configuration of a setting."""
        steps = self.steps[setting.model]
        if setting.model == "gpt":
            task: dict[str, Any] = {"name": "stdlib-gpt"}
        elif self.data is not None:
            task = {"name": "benchmarks.fashion_mlp:fashion_mlp", "path": str(self.data)}
            task["validation"] = self.validation
        else:
            task = {"name": "mnist-mlp"}
        task |= {"optimizer": setting.optimizer, "learning_rate": setting.rate}
        task |= {"schedule": setting.schedule, "schedule_steps": steps}
        every = max(1, steps // self.evaluations)
        data: dict[str, Any] = {
            "run": {"steps": steps, "evaluate_every": every, "device": self.device},
            "task": task,
            "controller": {"name": self.controller},
            "average": {"enabled": True},
            "metrics": {"step_every": 10},
        }
        return check_config(apply_overrides(data, self.overrides))

    def run(self, setting: Setting, folder: Path) -> None:
        """Run all arms of a setting, those that only help to find the best rate as baseline alone."""
        arms = self.arms if setting.shown else ()
        compare(self.configuration(setting), out_dir=folder, arms=arms, seeds=self.seeds)


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
    """

    setting: Setting
    rate_over_best: float
    tuned_loss: float
    final: dict[str, float]
    cost: dict[str, float]
    cost_low: dict[str, float]
    wall: dict[str, float]

    @property
    def best_control(self) -> tuple[str, float]:
        """The control arm that reaches the target first, and its speed-up in cost."""
        controls = {
            arm: gain for arm, gain in self.cost.items() if not arm.startswith(("hybrid", "baseline"))
        }
        best = max(controls, key=lambda arm: controls[arm], default="-")
        return best, controls.get(best, math.nan)


def rows(results: Mapping[Setting, Comparison]) -> list[Row]:
    """Rows of the table from the comparisons of all settings."""
    losses = {setting: result.row("baseline").final_loss for setting, result in results.items()}

    def best(setting: Setting, *fields: str) -> Setting:
        alike = [s for s in losses if all(getattr(s, f) == getattr(setting, f) for f in fields)]
        return min(alike, key=lambda s: _or_infinite(losses[s]))

    table = []
    for setting, result in results.items():
        if setting.shown:
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
                )
            )
    return table


def edges(results: Mapping[Setting, Comparison]) -> list[str]:
    """Names of the best recipes whose rate is the largest tried, so that a larger one may be better."""
    groups: dict[tuple[str, str, str], list[Setting]] = {}
    for setting in results:
        groups.setdefault((setting.model, setting.optimizer, setting.schedule), []).append(setting)
    found = []
    for alike in groups.values():
        best = min(alike, key=lambda s: _or_infinite(results[s].row("baseline").final_loss))
        if best.rate == max(s.rate for s in alike):
            found.append(best.name)
    return found


def _or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def markdown(table: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = (
        "| setting | rate / best | final: baseline | hybrid | hybrid, averaged | baseline, averaged "
        "| tuned | speed-up, cost: hybrid | hybrid, averaged | baseline, averaged | best control "
        "| speed-up, wall: hybrid | hybrid, averaged |"
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in table:
        control, gain = row.best_control
        cells = [
            row.setting.name,
            f"{row.rate_over_best:.3g}",
            *(
                _loss(row.final.get(arm, math.nan))
                for arm in ("baseline", "hybrid", "hybrid, averaged", "baseline, averaged")
            ),
            _loss(row.tuned_loss),
            *(_gain(row.cost.get(arm)) for arm in ("hybrid", "hybrid, averaged", "baseline, averaged")),
            f"{_gain(gain)} {control}",
            *(_gain(row.wall.get(arm)) for arm in ("hybrid", "hybrid, averaged")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def worst(table: Iterable[Row]) -> str:
    """The row in which the hybrid gains least."""
    row = min(table, key=lambda r: r.cost["hybrid"])
    return (
        f"worst row: {row.setting.name}, hybrid {_gain(row.cost['hybrid'])} in cost, "
        f"final loss {_loss(row.final['hybrid'])} against {_loss(row.final['baseline'])}"
    )


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def _gain(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.2f}x" if value > 0 else "missed"


def draw(table: Sequence[Row], path: Path) -> None:
    """Speed-up against the learning rate over the best one; missed targets lie on the lower edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401 - the backend of savefig
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axis = figure.subplots()
    floor, families = 0.4, dict.fromkeys((r.setting.model, r.setting.optimizer) for r in table)
    looks = {"hybrid": ("o", 1.0), "hybrid, averaged": ("^", 0.75), "baseline, averaged": ("x", 0.75)}
    for (model, optimizer), colour in zip(families, ("C0", "C1", "C2", "C3", "C4"), strict=False):
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
    axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def report(table: Sequence[Row], plan: Plan, seconds: float) -> dict[str, Any]:
    """Everything as plain data."""
    data: dict[str, Any] = plain_json(
        {
            "rows": [
                {"name": row.setting.name, "best_control": row.best_control, **attrs.asdict(row)}
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


def one_thread() -> None:
    """Let a worker compute on one thread; more get into the way of the other workers."""
    import torch

    torch.set_num_threads(1)


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
    parser.add_argument("--full", action="store_true", help="3 seeds, 2000 steps, all controls, stdlib-gpt")
    parser.add_argument("--only", action="append", help="settings whose name contains this; may be repeated")
    parser.add_argument("--seeds", type=int, help="number of seeds")
    parser.add_argument("--steps", type=int, help="real steps of the MLP's runs")
    parser.add_argument("--gpt-steps", type=int, help="real steps of stdlib-gpt's runs")
    parser.add_argument("--data", help=f"folder of {DATA_FILE}")
    parser.add_argument("--controller", default="credit")
    parser.add_argument("--set", action="append", default=[], help="dotted.key=value of every configuration")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, help="processes of one thread; 2 on the CPU, else 1")
    parser.add_argument("--out", type=Path, help="new folder for runs, predict.json and predict.png")
    parser.add_argument("--read", type=Path, help="tabulate a folder of earlier runs instead of running")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    full = options.full
    plan = Plan(
        steps={
            "mlp": options.steps or (2000 if full else 1200),
            "gpt": options.gpt_steps or (1000 if full else 400),
        },
        evaluations=50 if full else 30,
        validation=10_000 if full else 2_000,
        seeds=tuple(range(options.seeds or (3 if full else 1))),
        arms=FULL_ARMS if full else ARMS,
        controller=options.controller,
        device=options.device,
        data=find_data(options.data),
        overrides=tuple(options.set),
    )
    models = {"mlp", "gpt"} if full or options.device != "cpu" or options.only else {"mlp"}
    wanted = [s for s in SETTINGS if s.model in models]
    if options.only:
        wanted = [s for s in wanted if any(word in s.name for word in options.only)]
    folder = options.read or options.out or Path("runs") / time.strftime("predict-%Y%m%d-%H%M%S")
    started = time.monotonic()
    if options.read is None:
        workers = options.workers or (2 if options.device == "cpu" else 1)
        if not run_all(plan, wanted, folder, workers):
            return 130
    results = {s: read_comparison(folder / s.name) for s in wanted if (folder / s.name).is_dir()}
    table = rows(results)
    print(markdown(table) + "\n\n" + worst(table))
    for name in edges(results):
        print(f"the best rate is the largest tried: {name}")
    data = report(table, plan, time.monotonic() - started)
    (folder / "predict.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    draw(table, folder / "predict.png")
    print(f"runs, predict.json and predict.png in {folder}")
    return 0


def run_all(plan: Plan, wanted: Sequence[Setting], folder: Path, workers: int) -> bool:
    """Run all settings in worker processes, the longest first; False where the user stopped it."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # read by the workers when they start
    order = sorted(wanted, key=lambda s: (s.model != "gpt", not s.shown))
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        jobs = {pool.submit(plan.run, setting, folder / setting.name): setting for setting in order}
        try:
            for count, job in enumerate(as_completed(jobs), 1):
                job.result()
                seconds = time.monotonic() - started
                print(f"{count}/{len(jobs)} {jobs[job].name} after {seconds:.0f} s", file=sys.stderr)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            return False
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return True


if __name__ == "__main__":
    sys.exit(main())
