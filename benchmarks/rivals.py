"""Rivals of prediction as arms of the same comparison: same task, weights, batches, records and clock.

- `fast-forward`: every 6 steps repeats the last update while the loss on 32 held-out examples falls, and
  keeps the step that overshot, as the published code does; `fast-forward-undo` takes it back.
- `schedule-free`: SGD or AdamW of `schedulefree` at the setting's learning rate; for heavy ball at the
  effective one, ``rate / (1 - momentum)``, since the package's momentum does not add steps up.
- `prodigy`: `prodigyopt` at its own rate; reads no learning rate.
- `lookahead`: slow weights, synchronised every 5 steps half the way.
- `ema`: read-out by an exponential mean of the weights, decay 0.98.
- `ema-nesterov`: gradients at the weights plus their momentum, decay 0.9.
- `muon`: PyTorch's Muon at 0.02 for matrices, AdamW for the rest at an Adam setting's own rate, else 1e-3.
- `lbfgs`: PyTorch's L-BFGS on the full batch; its cost is counted in evaluations.

Fast Forward: Rahamim et al., "Fast Forwarding Low-Rank Training", EMNLP 2024. Schedule-Free: Defazio et al.,
"The Road Less Scheduled", NeurIPS 2024. Prodigy: Mishchenko and Defazio, ICML 2024. Lookahead: Zhang et al.,
NeurIPS 2019. EMA-Nesterov: arXiv 2605.25395, left on for the whole run.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from hybridcore.baseline import Baseline
from hybridcore.clock import Stopwatch
from hybridcore.components import build_component, import_function
from hybridcore.config import HybridConfig, MetricsConfig
from hybridcore.events import EventBus
from hybridcore.layout import Buckets
from hybridcore.plugins import Registry, load_framework
from hybridcore.probes import FORWARD_COST
from hybridcore.protocols import Adapter, OptimizerSpec, Problem, StepResult, TaskRun
from hybridcore.runner import train
from hybridcore.steppers import Stepper
from hybridcore.tasks.building import build_task
from hybridcore.training import RunResult

__all__ = ["RIVALS", "Rival", "RivalRun", "run_rival"]


class Loop(Baseline):
    """A plain loop with something after, or around, each real step.

    Args:
        task: Model, optimizer and data.
        events: Who hears of steps.
        clock: Training time.
        metrics: How often a step is reported.

    Attributes:
        limit: Cost after which it takes plain steps only: what comes later reaches no target sooner than the
            baseline.
    """

    limit = math.inf

    def __init__(self, task: TaskRun, events: EventBus, clock: Stopwatch, metrics: MetricsConfig) -> None:
        super().__init__(task.adapter, events, clock, metrics)
        self.adapter: Adapter = task.adapter
        self.probes = task.probes
        self.extra: dict[str, float] = {}

    def summary(self) -> dict[str, Any]:
        return {**super().summary(), **self.extra}

    @contextmanager
    def as_used(self) -> Iterator[None]:
        """Context in which the model has the weights that the rival would be used with."""
        yield


class FastForward(Loop):
    """Repeats the last update while a tiny validation loss falls."""

    interval, examples, keep_overshot = 6, 32, True

    def step(self, batch: Any) -> StepResult:
        forward = (self.real_steps + 1) % self.interval == 0 and self.counts.cost < self.limit
        before = self.adapter.read_params() if forward else None
        result = super().step(batch)
        if before is not None and not result.skipped:
            self._forward(before, max(result.n_examples, 1))
        return result

    def _forward(self, before: Buckets, batch_size: int) -> None:
        after = self.adapter.read_params()
        update = tuple(b - a for a, b in zip(before, after, strict=True))
        best = self._loss(batch_size)
        repeats = 0
        loss, overshot = best, False
        while self.counts.cost < self.limit:
            self.adapter.apply_delta(update)
            loss = self._loss(batch_size)
            overshot = not loss < best
            if overshot:
                break
            best, repeats = loss, repeats + 1
        if overshot and not (self.keep_overshot and np.isfinite(loss)):
            # Exactly what repeats of the update make, without the rounding of steps there and back.
            self.adapter.write_params(after)
            if repeats:
                self.adapter.apply_delta(update, float(repeats))
        self.extra["predicted_steps"] = self.extra.get("predicted_steps", 0.0) + repeats

    def _loss(self, batch_size: int) -> float:
        losses: list[float] = []
        for batch in self.probes:
            losses.extend(self.adapter.probe_loss(_first(batch, self.examples - len(losses))))
            if len(losses) >= self.examples:
                break
        self.counts.cost += FORWARD_COST * len(losses) / batch_size
        return float(np.mean(losses))


class FastForwardUndo(FastForward):
    """The same without the step that overshot."""

    keep_overshot = False


def _first(batch: Any, count: int) -> Any:
    """The first examples of a batch whose parts all run over the same examples; a full batch stays whole."""
    if len({len(part) for part in batch}) > 1:
        return batch
    return tuple(part[:count] for part in batch)


class Lookahead(Loop):
    """``s <- s + (w - s) / 2`` every 5 steps, where w starts anew from s; s is what is used."""

    interval, slow_step = 5, 0.5

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slow = self.adapter.read_params()

    def step(self, batch: Any) -> StepResult:
        result = super().step(batch)
        if self.real_steps % self.interval == 0:
            self._slow = self.adapter.add_params(self._slow, self.slow_step, 1.0 - self.slow_step)
            self.adapter.write_params(self._slow)
        return result

    @contextmanager
    def as_used(self) -> Iterator[None]:
        with self.adapter.weights(self._slow):
            yield


class Ema(Loop):
    """Mean of the weights with decay ``min(0.98, (1 + t) / (10 + t))`` at step t, so that it starts short."""

    decay = 0.98

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mean = self.adapter.read_params()

    def step(self, batch: Any) -> StepResult:
        result = super().step(batch)
        decay = min(self.decay, (1.0 + self.real_steps) / (10.0 + self.real_steps))
        self._mean = self.adapter.add_params(self._mean, 1.0 - decay, decay)
        return result

    @contextmanager
    def as_used(self) -> Iterator[None]:
        with self.adapter.weights(self._mean):
            yield


class EmaNesterov(Loop):
    """``m <- beta m + d`` with each update d, made from the gradient at ``w + beta m``."""

    beta = 0.9

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._weights = self.adapter.read_params()
        self._momentum: Buckets = tuple(0.0 * w for w in self._weights)

    def step(self, batch: Any) -> StepResult:
        self.adapter.apply_delta(self._momentum, self.beta)
        ahead = self.adapter.read_params()
        result = super().step(batch)
        there = self.adapter.read_params()
        updates = tuple(b - a for a, b in zip(ahead, there, strict=True))
        pairs = zip(self._momentum, updates, strict=True)
        self._momentum = tuple(self.beta * m + d for m, d in pairs)
        self._weights = tuple(w + d for w, d in zip(self._weights, updates, strict=True))
        self.adapter.write_params(self._weights)
        return result


class TrainEvalOptimizer(Loop):
    """For optimizers whose own modes put other weights into the model: training and evaluation ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adapter.optimizer.train()  # type: ignore[attr-defined]

    @contextmanager
    def as_used(self) -> Iterator[None]:
        optimizer = self.adapter.optimizer  # type: ignore[attr-defined]
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()


def _schedule_free(parameters: list[Any], spec: OptimizerSpec) -> Any:
    import schedulefree

    if spec.name in ("adam", "adamw"):
        return schedulefree.AdamWScheduleFree(
            parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, foreach=True
        )
    rate = spec.learning_rate / (1.0 - spec.momentum if spec.name == "momentum" else 1.0)
    return schedulefree.SGDScheduleFree(
        parameters, lr=rate, momentum=0.9, weight_decay=spec.weight_decay, foreach=True
    )


def _prodigy(parameters: list[Any], spec: OptimizerSpec) -> Any:
    import prodigyopt

    return prodigyopt.Prodigy(parameters, lr=1.0, weight_decay=spec.weight_decay)


def _muon(parameters: list[Any], spec: OptimizerSpec) -> Any:
    from benchmarks.muon import muon

    return muon(parameters, spec)


@attrs.frozen
class Rival:
    """What a rival is.

    Attributes:
        loop: What steps.
        optimizer: Makes another optimizer than the setting's; None keeps that one.
        evaluations: Evaluations that a step takes, about; the run has as many steps fewer.
        options: Options of the task that it sets.
        own_rate: It reads no learning rate, so that one run serves all rates.
    """

    loop: type[Loop] = Loop
    optimizer: Callable[[list[Any], OptimizerSpec], Any] | None = None
    evaluations: float = 1.0
    options: dict[str, Any] = attrs.field(factory=dict)
    own_rate: bool = False

    def configuration(self, config: HybridConfig) -> HybridConfig:
        """The setting as this rival runs it."""
        options = {**config.task.options, **self.options}
        steps, every = config.run.steps / self.evaluations, config.run.evaluate_every / self.evaluations
        run = attrs.evolve(config.run, steps=max(1, round(steps)), evaluate_every=max(1, round(every)))
        return attrs.evolve(config, run=run, task=attrs.evolve(config.task, options=options))


class RivalRun:
    """The recipe of one run of a rival, for `hybridcore.runner.train`.

    Args:
        rival: What it is.
    """

    def __init__(self, rival: Rival) -> None:
        self._rival = rival
        self._loop: Loop | None = None
        self._settled = False

    def task(self, config: HybridConfig, registry: Registry) -> TaskRun:
        """The configured task with the rival's own optimizer, evaluated through its read-out."""
        if self._rival.optimizer is None:
            built = build_task(config, registry)
        elif (function := _own_optimizer(config.task.name)) is not None:
            run, options = config.run, config.task.options
            built = function(run.framework, run.seed, run.device, **options, make=self._rival.optimizer)
        else:
            framework: Any = load_framework(config.run.framework)
            problem = problem_of(config, registry)
            built = framework.build(problem, config.run.device, make_optimizer=self._rival.optimizer)
        return attrs.evolve(built, evaluate=partial(self._evaluate, built.evaluate))

    def _evaluate(self, evaluate: Callable[[], Any]) -> Any:
        assert self._loop is not None
        if self._settled:
            return evaluate()
        with self._loop.as_used():
            return evaluate()

    def settle(self) -> None:
        """Leave the weights that the rival would be used with in the model, for good."""
        assert self._loop is not None
        with self._loop.as_used():
            weights = self._loop.adapter.read_params()
        self._loop.adapter.write_params(weights)
        self._settled = True

    def stepper(self, config: HybridConfig, task: TaskRun, events: EventBus, clock: Stopwatch) -> Stepper:
        """The loop."""
        self._loop = self._rival.loop(task, events, clock, config.metrics)
        self._loop.limit = config.run.steps
        return self._loop


def _own_optimizer(name: str) -> Callable[..., TaskRun] | None:
    """The function of a task by module:function, where it takes the maker of an optimizer."""
    function = import_function(name) if ":" in name else None
    takes = function is not None and "make" in inspect.signature(function).parameters
    return function if takes else None


def problem_of(config: HybridConfig, registry: Registry) -> Problem:
    """The configured task without a framework."""
    name, options = config.task.name, config.task.options
    if name == "benchmarks.fashion_mlp:fashion_mlp":
        from benchmarks.fashion_mlp import fashion_problem

        return fashion_problem(seed=config.run.seed, **options)
    task = build_component(registry.get("task", name), options, "task")
    problem: Problem = task.problem(config.run.seed)
    return problem


RIVALS: dict[str, Rival] = {
    "fast-forward": Rival(FastForward),
    "fast-forward-undo": Rival(FastForwardUndo),
    "schedule-free": Rival(TrainEvalOptimizer, _schedule_free, options={"schedule": "constant"}),
    "prodigy": Rival(Loop, _prodigy, own_rate=True),
    "muon": Rival(Loop, _muon),
    "lookahead": Rival(Lookahead),
    "ema": Rival(Ema),
    "ema-nesterov": Rival(EmaNesterov),
    "lbfgs": Rival(
        Loop,
        evaluations=12.0,
        options={"optimizer": "lbfgs", "learning_rate": 1.0, "weight_decay": 0.0, "schedule": "constant"},
        own_rate=True,
    ),
}
"""Arm to recipe."""


def run_rival(config: HybridConfig, arm: str, out_dir: Path, registry: Registry) -> RunResult:
    """Train one rival on a setting.

    Args:
        config: The setting's configuration, the seed included.
        arm: A key of `RIVALS`.
        out_dir: Folder for the run's files.
        registry: Where names are looked up.
    """
    rival = RIVALS[arm]
    return train(rival.configuration(config), arm, RivalRun(rival), out_dir, None, registry)
