"""What the prediction benchmark runs: training recipes, and how each of them is run in all arms."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from benchmarks.rivals import RIVALS, run_rival
from hybridcore.components import build_component, check_config
from hybridcore.config import HybridConfig
from hybridcore.configfile import apply_overrides
from hybridcore.plugins import Registry, load_registry
from hybridcore.runfiles import finished
from hybridcore.runner import run_task

__all__ = [
    "ARMS",
    "CURVE",
    "FULL_ARMS",
    "LARGE",
    "LARGE_ARMS",
    "ONE_THREAD",
    "SETTINGS",
    "Plan",
    "Setting",
    "large",
]

ARMS = ("hybrid", "random", "frozen")
FULL_ARMS = (*ARMS, "lr-x2", "lr-x4", "lr-x10")
LARGE_ARMS = (*ARMS, "lr-x4")

TASKS = {
    "gpt": "stdlib-gpt",
    "lora": "lora-gpt",
    "finetune": "finetune-gpt",
    "convection": "convection-pinn",
    "poisson": "poisson-pinn",
}
"""Registry name of each model's task; that of the MLP depends on the data."""

LARGE_TASK = "benchmarks.large_gpt:large_gpt"
LARGE_HISTORY = {"10m": 2_000.0, "124m": 16_000.0}
"""MiB of history and snapshots, so that it does not depend on what other processes take of the card."""

FULL_BATCH = ("convection", "poisson")
FINE_TUNING = ("lora", "finetune")

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
"""Environment of a worker, read by the frameworks when it starts."""

PINN: dict[str, Any] = {
    "predictor": {"name": "gauss-newton"},
    "controller": {"name": "fixed", "fixed": {"full_steps": 10, "correct_steps": 10}},
    "history": {"window": 5},
    "probe": {"batches": 1, "tentative": False},
    "verdict": {"confidence_z": 1e6, "guard_factor": 100.0},
    "budget": {"share": 1.0, "backoff_steps": 0},
}
"""Tables of the full-batch tasks: a change is measured on the loss that is trained before it is made, so that
the delayed verdict is left to its guard and the budget does not wait for it."""


@attrs.frozen
class Setting:
    """A training recipe.

    Attributes:
        model: ``"mlp"`` or a key of `TASKS`.
        optimizer: Optimizer in the tasks' words.
        rate: Learning rate, the peak where it decays.
        schedule: ``"constant"`` or ``"cosine"``.
        shown: Whether it is a row; others only help to find the best rate.
        above: A rate far above the best one on purpose: what prediction does where it can only harm.
    """

    model: str
    optimizer: str
    rate: float
    schedule: str = "constant"
    shown: bool = True
    above: bool = False

    @property
    def name(self) -> str:
        """Name of the row and of its folder."""
        return f"{self.model}-{self.optimizer}-{self.rate:g}" + ("-cosine" * (self.schedule == "cosine"))


SETTINGS = (
    Setting("mlp", "sgd", 1e-3),
    Setting("mlp", "sgd", 1e-2),
    Setting("mlp", "sgd", 0.1),
    Setting("mlp", "sgd", 0.3),
    Setting("mlp", "sgd", 1.0, above=True),
    Setting("mlp", "sgd", 3.0, above=True),
    Setting("mlp", "sgd", 0.3, "cosine"),
    Setting("mlp", "sgd", 0.1, "cosine", shown=False),
    Setting("mlp", "sgd", 1.0, "cosine", shown=False),
    Setting("mlp", "momentum", 1e-3),
    Setting("mlp", "momentum", 1e-2, shown=False),
    Setting("mlp", "momentum", 0.03),
    Setting("mlp", "momentum", 0.1, above=True),
    Setting("mlp", "momentum", 0.3, above=True),
    Setting("mlp", "momentum", 0.1, "cosine"),
    Setting("mlp", "momentum", 0.03, "cosine", shown=False),
    Setting("mlp", "momentum", 0.3, "cosine", shown=False),
    Setting("mlp", "adam", 1e-4),
    Setting("mlp", "adam", 1e-3),
    Setting("mlp", "adam", 3e-3, above=True),
    Setting("mlp", "adam", 1e-2, above=True),
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
    Setting("lora", "adamw", 1e-5),
    Setting("lora", "adamw", 1e-4),
    Setting("lora", "adamw", 1e-3, shown=False),
    Setting("lora", "adamw", 3e-3),
    Setting("lora", "adamw", 1e-2, shown=False),
    Setting("finetune", "adamw", 2e-5),
    Setting("finetune", "adamw", 2e-4, shown=False),
    Setting("finetune", "adamw", 6e-4),
    Setting("finetune", "adamw", 2e-3, shown=False),
    Setting("convection", "adam", 1e-3),
    Setting("convection", "adam", 3e-3, shown=False),
    Setting("convection", "adam", 1e-2),
    Setting("convection", "adam", 3e-2, shown=False),
    Setting("convection", "adam", 1e-2, "cosine"),
    Setting("convection", "adam", 3e-2, "cosine", shown=False),
    Setting("poisson", "adam", 1e-3),
    Setting("poisson", "adam", 3e-3, shown=False),
    Setting("poisson", "adam", 1e-2),
    Setting("poisson", "adam", 3e-2, shown=False),
    Setting("poisson", "adam", 1e-2, "cosine"),
    Setting("poisson", "adam", 3e-2, "cosine", shown=False),
)

CURVE = tuple(
    Setting(model, optimizer, float(f"{best * ratio:.6g}"))
    for model, optimizer, best in (("mlp", "sgd", 0.3), ("mlp", "adam", 1e-3), ("lora", "adamw", 3e-3))
    for ratio in (1 / 300, 1 / 100, 1 / 30, 1 / 10, 1 / 3, 1.0, 3.0)
)
"""Seven rates of three tasks, over about the best one."""


def large(size: str = "10m") -> tuple[Setting, ...]:
    """Rows of a large language model, from scratch, with low rank, and fine-tuned with all weights.

    Each at about its best constant rate and 10 to 30 times below, the larger one from scratch at 10 times as
    well; rates around the best one and two cosine decays help to find it, on one seed.

    Args:
        size: Key of `benchmarks.large_gpt.SIZES`.
    """
    found = []
    best = {"scratch": 6e-5 if size == "124m" else 1e-3, "lora": 3e-3, "finetune": 3e-4}
    for kind, below in (("scratch", 10), ("lora", 30), ("finetune", 30)):
        rate, model = best[kind], f"{kind}-{size}"
        found += [Setting(model, "adamw", float(f"{rate / below:.6g}")), Setting(model, "adamw", rate)]
        others = [(rate / 3, "constant"), (3 * rate, "constant"), (rate, "cosine"), (3 * rate, "cosine")]
        found += [Setting(model, "adamw", float(f"{r:.6g}"), s, shown=False) for r, s in others]
    if size == "124m":
        found.append(Setting("scratch-124m", "adamw", 6e-4, above=True))
    return tuple(found)


LARGE = (*large("10m"), *large("124m"))


@attrs.frozen
class Plan:
    """How the settings are run.

    Attributes:
        steps: Real steps of a run, by model.
        evaluations: Evaluations in a run.
        validation: Images of Fashion-MNIST that an evaluation reads.
        seeds: Seeds of every arm.
        arms: Arms beside the baseline; ``lbfgs`` runs on full batches only.
        controller: Registry name of the hybrid's controller; full batches have their own, see `PINN`.
        device: Device in the framework's words.
        data: The Fashion-MNIST file, or None for `mnist-mlp`; a file beside it is what large models are
            fine-tuned to.
        overrides: Settings ``dotted.key=value`` of every configuration.
        deadline: Time of `time.time` after which no run is begun that would not end before.
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
    deadline: float = math.inf

    def configuration(self, setting: Setting, seed: int = 0) -> HybridConfig:
        """The configuration of a setting."""
        steps = self.steps[setting.model]
        kind, _, size = setting.model.partition("-")
        if size:
            task: dict[str, Any] = {"name": LARGE_TASK, "kind": kind, "size": size}
            task |= {"lr_warmup_steps": max(1, steps // 20)} if kind == "scratch" else {"text": self._text()}
        elif setting.model in TASKS:
            task = {"name": TASKS[setting.model]}
        elif self.data is not None:
            task = {"name": "benchmarks.fashion_mlp:fashion_mlp", "path": str(self.data)}
            task["validation"] = self.validation
        else:
            task = {"name": "mnist-mlp"}
        task |= {"optimizer": setting.optimizer, "learning_rate": setting.rate}
        task |= {"schedule": setting.schedule, "schedule_steps": steps}
        every = max(1, steps // self.evaluations)
        data: dict[str, Any] = {
            "run": {"steps": steps, "evaluate_every": every, "device": self.device, "seed": seed},
            "task": task,
            "controller": {"name": self.controller},
            "average": {"enabled": True},
            "metrics": {"step_every": 10},
        }
        if setting.model in FULL_BATCH:
            data |= PINN
        if size in LARGE_HISTORY:
            data["history"] = {"memory_budget_mib": LARGE_HISTORY[size]}
        return check_config(apply_overrides(data, self.overrides))

    def _text(self) -> str:
        beside = None if self.data is None else self.data.parent / "tinyshakespeare.txt"
        return str(beside) if beside is not None and beside.is_file() else ""

    def arms_of(self, setting: Setting) -> tuple[str, ...]:
        """Arms of a setting; one that only helps to find the best rate has its baseline alone."""
        if not setting.shown:
            return ("baseline",)
        full_batch = setting.model in FULL_BATCH
        return ("baseline", *(arm for arm in self.arms if arm != "lbfgs" or full_batch))

    def run(self, setting: Setting, seed: int, folder: Path) -> bool:
        """Run all arms of a setting with one seed that are not finished yet; False where cut short.

        The order of the arms is reversed in every other seed, so that a slow drift of the machine favours
        none; a short run that is thrown away comes first, so that no arm pays for first-time work.

        Args:
            setting: The recipe.
            seed: The seed.
            folder: The setting's folder; runs lie in ``<arm>/seed-<n>/``.
        """
        arms = self.arms_of(setting)
        places = {arm: folder / arm / f"seed-{seed}" for arm in (arms if seed % 2 == 0 else reversed(arms))}
        missing = {arm: place for arm, place in places.items() if not finished(place)}
        if not missing:
            return True
        if time.time() > self.deadline:
            return False
        config, registry = self.configuration(setting, seed), load_registry()
        short = attrs.evolve(config, run=attrs.evolve(config.run, steps=3))
        for arm in {"baseline", "hybrid"}.intersection(missing):
            with tempfile.TemporaryDirectory() as thrown_away:
                _run_arm(short, arm, Path(thrown_away) / "run", registry)
        longest = 0.0
        for arm, place in missing.items():
            begun = time.time()
            if begun + longest > self.deadline:
                return False
            shutil.rmtree(place, ignore_errors=True)  # what an earlier, interrupted call left
            _run_arm(config, arm, place, registry)
            longest = max(longest, 1.3 * (time.time() - begun))
        return True

    def prepare(self, settings: tuple[Setting, ...]) -> None:
        """Train the base model of the fine-tuning tasks, where it is not cached, before workers need it."""
        from hybridcore.tasks.pretrained import base_weights

        for size in {
            s.model.partition("-")[2] for s in settings if s.model.startswith(("lora-", "finetune-"))
        }:
            from benchmarks.large_gpt import base_of

            base_of(size, self.device)
        registry = load_registry()
        for setting in [s for s in settings if s.model in FINE_TUNING][:1]:
            options = self.configuration(setting).task.options
            task = build_component(registry.get("task", TASKS[setting.model]), options, "task")
            base_weights(task.config, self.device)


def _run_arm(config: HybridConfig, arm: str, place: Path, registry: Registry) -> None:
    if arm in RIVALS:
        result = run_rival(config, arm, place, registry)
    else:
        result = run_task(config, arm=arm, out_dir=place, registry=registry)
    if result.interrupted:
        raise KeyboardInterrupt
