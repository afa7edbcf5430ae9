"""Runs the recipes in worker processes: tuning first, then a recipe with one seed at a time."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from benchmarks.predict import ONE_THREAD
from benchmarks.recipes.catalogue import Recipe
from benchmarks.recipes.plan import TUNED, Plan
from hybridcore.errors import HybridCoreError

__all__ = ["run_all"]


def run_all(plan: Plan, wanted: Sequence[Recipe], folder: Path, workers: int) -> bool:
    """Run everything that is not finished, the longest first; False where something is left.

    Args:
        plan: How.
        wanted: The recipes.
        folder: Folder with one sub-folder for each recipe.
        workers: Processes.
    """
    os.environ.update(ONE_THREAD)  # read by the workers when they start
    started, whole = time.monotonic(), True
    ordered = sorted(wanted, key=lambda recipe: -recipe.step_ms * plan.steps(recipe))
    prepare(plan, ordered)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs: dict[Future[bool], tuple[str, Recipe | None]] = {}

        def compare(recipe: Recipe) -> None:
            for seed in plan.seeds:
                job = pool.submit(plan.run, recipe, seed, folder / recipe.name)
                jobs[job] = (f"{recipe.name} seed {seed}", None)

        for recipe in ordered:
            if any(arm in TUNED for arm in plan.arms):
                jobs[pool.submit(plan.tune, recipe, folder / recipe.name)] = (f"{recipe.name} tuning", recipe)
            else:
                compare(recipe)
        seen: set[Future[bool]] = set()
        try:
            while waiting := jobs.keys() - seen:
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for job in ended:
                    name, recipe_next = jobs[job]
                    try:
                        word = "done" if job.result() else "cut short"
                    except HybridCoreError as error:
                        word = f"failed: {error}"
                    whole = whole and word == "done"
                    if recipe_next is not None and word == "done":
                        compare(recipe_next)
                    seen.add(job)
                    seconds = time.monotonic() - started
                    line = f"{len(seen)}/{len(jobs)} {name} {word} after {seconds:.0f} s"
                    print(line, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            return False
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return whole


def prepare(plan: Plan, recipes: Sequence[Recipe]) -> None:
    """Train the base model of the fine-tuning recipes, where it is not cached, before workers need it."""
    if any(recipe.model in ("finetune", "lora") for recipe in recipes):
        from hybridcore.tasks.pretrained import FineTuningOptions, base_weights

        base_weights(FineTuningOptions(), plan.device)
