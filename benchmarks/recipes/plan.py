"""How the recipes are run: arms, tuning, and what is left to do in a folder."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from benchmarks.recipes.catalogue import Recipe
from benchmarks.recipes.data import load
from benchmarks.recipes.ladder import lowest, next_candidates, times
from benchmarks.rivals import RIVALS, RivalRun
from benchmarks.settings import PINN
from hybridcore.arms import plan_arm
from hybridcore.components import check_config
from hybridcore.config import HybridConfig
from hybridcore.configfile import apply_overrides
from hybridcore.errors import DivergenceError
from hybridcore.plugins import Registry, load_registry
from hybridcore.runfiles import finished, write_json
from hybridcore.runner import train
from hybridcore.training import RunResult
from hybridcore.tuning import CANDIDATES

__all__ = [
    "CONTROLS",
    "OWN_RATE",
    "PREDICTION",
    "PUBLISHED_RIVALS",
    "RESHUFFLED",
    "TUNED",
    "Plan",
    "Tuned",
    "groups",
]

CONTROLS = ("random", "frozen", "lr-x4", "lr-x10")
RESHUFFLED = "reshuffled"
"""The published loop from the same initial weights with its examples in another order: what the time to a
target owes to chance."""

TUNED = ("tuned", "hybrid-tuned")
PREDICTION = ("nowcast", "gauss-newton")
"""Other predictors of this project: a plugin, and the one for losses that are squares."""

PUBLISHED_RIVALS = ("fast-forward", "schedule-free", "lookahead", "ema", "ema-nesterov", "nowcast")
"""Rivals that train with the published optimizer's settings."""

OWN_RATE = ("prodigy", "muon", "lbfgs")
"""Rivals that are other optimizers."""

PACKAGES = {"schedule-free": "schedulefree", "prodigy": "prodigyopt"}
NOWCAST: dict[str, Any] = {
    "controller": {"name": "threshold", "threshold": {"full_steps": 20, "correct_steps": 10}}
}
"""The controller under which its model card found it best; under `credit` it is never ready."""

TUNING_SEED = 1000
OTHER_ORDER = 2000
EVALUATIONS = 40
READ_TWICE = ("baseline", "hybrid", "tuned")
"""Arms that are also read out by the running average of their weights."""

TOGETHER = ("baseline", "hybrid")
"""Arms that always share a process, so that their seconds are measured in turns on one core."""

_warm: set[str] = set()
"""Recipes whose first-time work this process has done."""


@attrs.frozen
class Tuned:
    """The best settings that tuning found.

    Attributes:
        factor: Learning rate over the published one.
        schedule: Its schedule.
    """

    factor: float
    schedule: str


@attrs.frozen
class Plan:
    """How the recipes are run.

    Attributes:
        seeds: Seeds of every arm.
        arms: Arms beside the baseline.
        scale: Steps over the published ones.
        device: Device in PyTorch's words.
        data: Folder of the data files.
        overrides: Settings ``dotted.key=value`` of every configuration.
        deadline: Time of `time.time` after which no run is begun.
        evaluations: About how many evaluations a run has.
        apart: Give every arm a process of its own, `TOGETHER` one for both: shorter jobs for many cores.
    """

    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    scale: float = 1.0
    device: str = "cpu"
    data: Path | None = None
    overrides: tuple[str, ...] = ()
    deadline: float = math.inf
    evaluations: int = EVALUATIONS
    apart: bool = False

    def steps(self, recipe: Recipe) -> int:
        """Real steps of a run, without the L-BFGS iterations that may follow."""
        published = recipe.steps
        if published is None:
            count = load(recipe, self.data).count
            published = round((recipe.epochs or 1.0) * count / recipe.batch_size)
        return max(10, round(self.scale * published))

    def iterations(self, recipe: Recipe) -> int:
        """L-BFGS iterations after that, at most."""
        return round(self.scale * recipe.iterations)

    def evaluate_every(self, recipe: Recipe) -> int:
        """Real steps between evaluations; a hand-over to L-BFGS is one of them, and there are more."""
        steps = self.steps(recipe)
        if not recipe.iterations:
            return max(1, steps // self.evaluations)
        return steps // max(d for d in range(1, 2 * self.evaluations + 1) if steps % d == 0)

    def configuration(
        self, recipe: Recipe, seed: int = 0, arm: str = "hybrid", tuned: Tuned | None = None
    ) -> HybridConfig:
        """The configuration of an arm: the engine's defaults on the recipe's settings."""
        tuned = tuned or Tuned(1.0, recipe.schedule)
        steps = self.steps(recipe)
        data: dict[str, Any] = {
            "run": {
                "steps": steps + self.iterations(recipe),
                "evaluate_every": self.evaluate_every(recipe),
                "device": self.device,
                "seed": seed,
            },
            "task": {
                "name": "benchmarks.recipes.task:recipe",
                "recipe": recipe.name,
                "steps": steps,
                "learning_rate": recipe.learning_rate * tuned.factor,
                "optimizer": recipe.optimizer,
                "schedule": tuned.schedule,
                "weight_decay": recipe.weight_decay,
                "data": str(self.data or ""),
            },
            "average": {"enabled": arm in READ_TWICE},
            "metrics": {"step_every": max(1, steps // 300)},
        }
        if arm == RESHUFFLED:
            data["task"]["order"] = OTHER_ORDER + seed
        elif arm == "gauss-newton":
            data |= PINN
        elif arm == "nowcast":
            data |= NOWCAST | {"predictor": {"name": arm, arm: {"decay_steps": steps}}}
        return check_config(apply_overrides(data, self.overrides))

    def claim(self, folder: Path) -> None:
        """Keep runs of another length or on another device out of a recipe's folder.

        Raises:
            SystemExit: It holds such runs.
        """
        path, own = folder / "plan.json", self.kept()
        if not path.is_file():
            write_json(path, own)
        elif (found := _kept_in(path)) != own:
            raise SystemExit(f"{folder} holds runs of another plan: {found}, not {own}; name another --out")

    def kept(self) -> dict[str, Any]:
        """What all runs of a recipe have in common."""
        return {
            "scale": self.scale,
            "device": self.device,
            "overrides": list(self.overrides),
            "evaluations": self.evaluations,
        }

    def found(self, folder: Path) -> Plan:
        """This plan with the length and the device that a recipe's folder was run with."""
        data = _kept_in(folder / "plan.json")
        return attrs.evolve(self, **{**data, "overrides": tuple(data["overrides"])})

    def arms_of(self, recipe: Recipe) -> tuple[str, ...]:
        """Arms that can be run on a recipe with the packages that are here."""
        left_out = set(recipe.without)
        left_out |= {arm for arm, package in PACKAGES.items() if find_spec(package) is None}
        if not any(point.name == "nowcast" for point in entry_points(group="hybridcore")):
            left_out.add("nowcast")
        if recipe.model not in ("burgers", "polynomial"):
            left_out.add("gauss-newton")
        if not recipe.full_batch:
            left_out.add("lbfgs")
        return ("baseline", *(arm for arm in self.arms if arm not in left_out))

    def seconds(self, recipe: Recipe, folder: Path) -> float:
        """About how long a run takes: as long as the longest finished one, or a guess."""
        found = [
            json.loads(path.read_text(encoding="utf-8")).get("elapsed") or 0.0
            for path in folder.rglob("summary.json")
        ]
        return max(found, default=self.guess(recipe))

    def guess(self, recipe: Recipe) -> float:
        """Seconds of a run on one CPU core, evaluation apart; elsewhere 5 ms a step, whatever the model."""
        steps = self.steps(recipe) + self.iterations(recipe)
        return 1e-3 * (recipe.step_ms if self.device == "cpu" else 5.0) * steps

    def late(self, recipe: Recipe, folder: Path) -> bool:
        """Whether the next run would not end before the deadline."""
        if math.isinf(self.deadline):
            return False
        # Apart, most arms have been seen before the last ones start, and the longest of them is what counts.
        margin = 1.15 if self.apart else 1.6
        return time.time() + margin * self.seconds(recipe, folder) > self.deadline

    def tune(self, recipe: Recipe, folder: Path) -> bool:
        """Find the best rate and schedule of the baseline and write ``tuning.json``; False where cut short.

        Rates are published ones times powers of about three, as far as the best one is not the largest or
        the smallest tried; then, from a constant schedule, a cosine from the best rate upwards. The seed is
        none of those that are compared; the score is the final validation loss.
        """
        if (folder / "tuning.json").is_file():
            return True
        registry, losses = load_registry(), dict[tuple[str, float], float]()
        waiting = [(recipe.schedule, 1.0), (recipe.schedule, 3.0)]
        while waiting:
            schedule, factor = waiting.pop(0)
            if (schedule, factor) in losses:
                continue
            place = _place(folder, schedule, factor)
            if not finished(place) and self.late(recipe, folder):
                return False
            losses[schedule, factor] = self._candidate(recipe, Tuned(factor, schedule), place, registry)
            if not waiting:
                waiting = next_candidates(losses, recipe.schedule)
        best = lowest(losses)
        write_json(
            folder / "tuning.json",
            {
                "factor": best[1],
                "schedule": best[0],
                "learning_rate": best[1] * recipe.learning_rate,
                "losses": {f"{schedule}-x{factor:.4g}": loss for (schedule, factor), loss in losses.items()},
            },
        )
        return True

    def missing(self, recipe: Recipe, folder: Path) -> list[Tuned]:
        """Candidates that `tune` still needs, as far as that is known, and some that it may need next.

        They can be run at the same time, each by `candidate`; with none left `tune` only reads.
        """
        if (folder / "tuning.json").is_file():
            return []
        losses = dict[tuple[str, float], float]()
        waiting = [(recipe.schedule, 1.0), (recipe.schedule, 3.0)]
        while waiting:
            places = {c: _place(folder, *c) for c in waiting}
            if not all(map(finished, places.values())):
                if not losses:
                    waiting += [(recipe.schedule, factor) for factor in (0.3, 10.0, 30.0)]
                elif len(waiting) > 1:
                    waiting.append((waiting[0][0], times(waiting[0][1], 2)))
                return [Tuned(f, s) for s, f in waiting if not finished(_place(folder, s, f))]
            losses |= {c: _final_loss(place) for c, place in places.items()}
            waiting = [c for c in next_candidates(losses, recipe.schedule) if c not in losses]
        return []

    def candidate(self, recipe: Recipe, tuned: Tuned, folder: Path) -> bool:
        """Run one of `missing`; False where it would come too late."""
        place = _place(folder, tuned.schedule, tuned.factor)
        if not finished(place) and self.late(recipe, folder):
            return False
        self._candidate(recipe, tuned, place, load_registry())
        return True

    def _candidate(self, recipe: Recipe, tuned: Tuned, place: Path, registry: Registry) -> float:
        if not finished(place):
            shutil.rmtree(place, ignore_errors=True)
            config = self.configuration(recipe, TUNING_SEED, "candidate", tuned)
            config = attrs.evolve(config, run=attrs.evolve(config.run, evaluate_every=config.run.steps))
            try:
                result = self._train(recipe, config, "tuned", False, place, registry)
            except DivergenceError:
                write_json(place / "summary.json", {"interrupted": False, "final_loss": None})
                return math.inf
            if result.interrupted:
                raise KeyboardInterrupt
        return _final_loss(place)

    def tuned(self, folder: Path) -> Tuned | None:
        """What tuning found; None where it has not been done."""
        try:
            data = json.loads((folder / "tuning.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Tuned(float(data["factor"]), str(data["schedule"]))

    def run(self, recipe: Recipe, seed: int, folder: Path, only: tuple[str, ...] | None = None) -> bool:
        """Run all arms of a recipe with one seed that are not finished yet; False where cut short.

        The order of the arms is reversed in every other seed, so that a slow drift of the machine favours
        none; a short run that is thrown away comes first, so that no arm pays for first-time work.

        Args:
            recipe: The recipe.
            seed: The seed.
            folder: The recipe's folder; runs lie in ``<arm>/seed-<n>/``.
            only: Leave the other arms out.
        """
        tuned = self.tuned(folder)
        arms = [arm for arm in self.arms_of(recipe) if arm not in TUNED or tuned is not None]
        arms = [arm for arm in arms if only is None or arm in only]
        places = {arm: folder / arm / f"seed-{seed}" for arm in (arms if seed % 2 == 0 else reversed(arms))}
        missing = {arm: place for arm, place in places.items() if not finished(place)}
        registry = load_registry()
        if missing and not self.late(recipe, folder):
            self._warm_up(recipe, seed, registry)
        for arm, place in missing.items():
            if self.late(recipe, folder):
                return False
            shutil.rmtree(place, ignore_errors=True)  # what an earlier, interrupted call left
            self._run_arm(recipe, arm, seed, tuned, place, registry)
        return True

    def _warm_up(self, recipe: Recipe, seed: int, registry: Registry) -> None:
        if recipe.name in _warm:
            return
        _warm.add(recipe.name)
        config = self.configuration(recipe, seed)
        short = attrs.evolve(config, run=attrs.evolve(config.run, steps=3))
        for engine in (False, True):
            with tempfile.TemporaryDirectory() as thrown_away:
                train(short, "warm-up", engine, Path(thrown_away) / "run", None, registry)

    def _run_arm(
        self, recipe: Recipe, arm: str, seed: int, tuned: Tuned | None, place: Path, registry: Registry
    ) -> None:
        config = self.configuration(recipe, seed, arm, tuned if arm in TUNED else None)
        if arm in RIVALS:
            config = RIVALS[arm].configuration(config)
            result = self._train(recipe, config, arm, RivalRun(RIVALS[arm]), place, registry)
        elif arm in (*TUNED, *PREDICTION, RESHUFFLED):
            engine = arm not in ("tuned", RESHUFFLED)
            result = self._train(recipe, config, arm, engine, place, registry)
        else:
            plan = plan_arm(config, arm, registry)
            result = self._train(recipe, plan.config, arm, plan.engine, place, registry)
        if result.interrupted:
            raise KeyboardInterrupt

    def _train(
        self,
        recipe: Recipe,
        config: HybridConfig,
        arm: str,
        loop: bool | RivalRun,
        place: Path,
        registry: Registry,
    ) -> RunResult:
        """Train one arm; where the recipe says so, L-BFGS follows, unless the arm is L-BFGS itself."""
        if not recipe.iterations or arm == "lbfgs":
            return train(config, arm, loop, place, None, registry)
        from benchmarks.recipes.handover import HandOver

        both = HandOver(loop, self.steps(recipe), self.iterations(recipe))
        return train(config, arm, both, place, None, registry)


def groups(plan: Plan, recipe: Recipe, tuned: bool) -> list[tuple[str, ...]]:
    """Arms of a recipe by job: those on tuned settings, or the others.

    Args:
        plan: Says whether arms are run apart.
        recipe: The recipe.
        tuned: Which ones.
    """
    arms = [arm for arm in plan.arms_of(recipe) if (arm in TUNED) == tuned]
    if not plan.apart:
        return [tuple(arms)] if arms else []
    together = tuple(arm for arm in arms if arm in TOGETHER)
    return [*([together] if together else []), *((arm,) for arm in arms if arm not in TOGETHER)]


def _kept_in(path: Path) -> dict[str, Any]:
    """`Plan.kept` of a file; rounds of old did not say how often they evaluated."""
    return {"evaluations": EVALUATIONS, **json.loads(path.read_text(encoding="utf-8"))}


def _place(folder: Path, schedule: str, factor: float) -> Path:
    return folder / CANDIDATES / f"{schedule}-x{factor:.4g}"


def _final_loss(place: Path) -> float:
    loss = json.loads((place / "summary.json").read_text(encoding="utf-8"))["final_loss"]
    return math.inf if loss is None else float(loss)
