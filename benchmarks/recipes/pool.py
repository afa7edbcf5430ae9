"""Runs the recipes in worker processes: a recipe's seed at a time, or every arm apart."""

from __future__ import annotations

import heapq
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import attrs

from benchmarks.recipes.catalogue import Recipe
from benchmarks.recipes.plan import TUNED, Plan, groups
from benchmarks.settings import ONE_THREAD
from hybridcore.errors import HybridCoreError

__all__ = ["run_all"]


def run_all(plan: Plan, wanted: Sequence[Recipe], folder: Path, workers: int) -> bool:
    """Run everything that is not finished; False where something is left.

    Tuning comes first, then seed after seed, the longest jobs first, so that a call that ends early leaves
    whole seeds behind.

    Args:
        plan: How.
        wanted: The recipes.
        folder: Folder with one sub-folder for each recipe.
        workers: Processes.

    Raises:
        KeyboardInterrupt: The user stopped it; what is finished stays.
    """
    os.environ.update(ONE_THREAD)  # read by the workers when they start
    prepare(plan, wanted)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        queue = _Queue(plan, wanted, folder, pool, workers)
        try:
            return queue.drain()
        except BrokenProcessPool:
            print("a worker was killed, perhaps because memory ran out: try fewer --workers", file=sys.stderr)
            return False
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@attrs.frozen(order=True)
class _Job:
    """Something for one process; the least is run first.

    Attributes:
        seed: Its seed; -1 for tuning.
        work: About its seconds, negative.
        name: What is printed.
        recipe: Name of its recipe.
        call: Does it, and says whether it was not cut short.
    """

    seed: int
    work: float
    name: str
    recipe: str
    call: Callable[[], bool] = attrs.field(order=False)


class _Queue:
    """Jobs that wait, in the order of their priority, and those that are under way."""

    def __init__(
        self, plan: Plan, wanted: Sequence[Recipe], folder: Path, pool: ProcessPoolExecutor, workers: int
    ) -> None:
        self._plan, self._folder, self._pool, self._workers = plan, folder, pool, workers
        self._waiting: list[_Job] = []
        self._running: dict[Future[bool], _Job] = {}
        self._recipes = {recipe.name: recipe for recipe in wanted}
        self._seconds = {recipe.name: plan.guess(recipe) for recipe in wanted}
        self._tuning: set[str] = set()
        self._started, self._ended, self._all = time.monotonic(), 0, 0
        for recipe in wanted:
            tuned = any(arm in TUNED for arm in plan.arms)
            if not tuned or plan.apart:
                self._compare(recipe, tuned=False)
            if tuned:
                self._tuning.add(recipe.name)
                self._tune(recipe)

    def _add(self, seed: int, recipe: Recipe, count: float, name: str, call: Callable[[], bool]) -> None:
        self._all += 1
        job = _Job(seed, -count * self._seconds[recipe.name], f"{recipe.name} {name}", recipe.name, call)
        heapq.heappush(self._waiting, job)

    def _compare(self, recipe: Recipe, *, tuned: bool) -> None:
        """Queue the arms on published settings, or those on tuned ones, with all seeds."""
        own = self._folder / recipe.name
        for seed in self._plan.seeds:
            for arms in groups(self._plan, recipe, tuned):
                name = f"seed {seed}" + (f" {'+'.join(arms)}" if self._plan.apart else "")
                self._add(seed, recipe, len(arms), name, partial(self._plan.run, recipe, seed, own, arms))

    def _tune(self, recipe: Recipe) -> None:
        """Queue what tuning needs next; where that is nothing, what waits for its end."""
        own = self._folder / recipe.name
        missing = self._plan.missing(recipe, own)
        if missing and not self._plan.apart:
            self._add(-1, recipe, len(missing), "tuning", partial(self._plan.tune, recipe, own))
        for tuned in missing if self._plan.apart else ():
            name = f"tuning {tuned.schedule} x{tuned.factor:g}"
            self._add(-1, recipe, 1, name, partial(self._plan.candidate, recipe, tuned, own))
        if missing:
            return
        self._tuning.discard(recipe.name)
        self._plan.tune(recipe, own)
        if self._plan.apart:
            self._compare(recipe, tuned=True)
        else:
            self._whole(recipe)

    def _whole(self, recipe: Recipe) -> None:
        """Queue all arms together, a job for each seed."""
        own = self._folder / recipe.name
        for seed in self._plan.seeds:
            count = len(self._plan.arms_of(recipe))
            self._add(seed, recipe, count, f"seed {seed}", partial(self._plan.run, recipe, seed, own))

    def drain(self) -> bool:
        """Run all jobs; False where one was cut short or failed."""
        whole = True
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._workers:
                job = heapq.heappop(self._waiting)
                self._running[self._pool.submit(job.call)] = job
            ended, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in ended:
                job = self._running.pop(future)
                try:
                    word = "done" if future.result() else "cut short"
                except HybridCoreError as error:
                    word = f"failed: {error}"
                whole = whole and word == "done"
                self._ended += 1
                seconds = time.monotonic() - self._started
                line = f"{self._ended}/{self._all} {job.name} {word} after {seconds:.0f} s"
                print(line, file=sys.stderr, flush=True)
                if job.seed < 0 and word == "done" and not self._busy(job.recipe):
                    self._tune(self._recipes[job.recipe])
        return whole and not self._tuning

    def _busy(self, recipe: str) -> bool:
        """Whether tuning a recipe has more under way or waiting."""
        jobs = (*self._running.values(), *self._waiting)
        return any(job.recipe == recipe and job.seed < 0 for job in jobs)


def prepare(plan: Plan, recipes: Sequence[Recipe]) -> None:
    """Train the base model of the fine-tuning recipes, where it is not cached, before workers need it."""
    if any(recipe.model in ("finetune", "lora") for recipe in recipes):
        from hybridcore.tasks.pretrained import FineTuningOptions, base_weights

        base_weights(FineTuningOptions(), plan.device)
