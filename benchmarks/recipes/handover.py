"""Recipes whose first optimizer hands over to L-BFGS, as physics-informed networks are often trained.

The engine works for the first optimizer. Its jumps would make L-BFGS forget its curvature pairs, which are
worth more than a jump, so it does what a user's script would do: it ends (an open trial is judged), and
L-BFGS goes on from its weights in the user's own loop. All arms hand over in the same way and pay for every
closure.

L-BFGS works in double precision, as DeepXDE advises where it stops early. Adam ends where the curvature along
the gradient is thousands of times that along other directions. The first line search gives L-BFGS the scale
of that one direction, and what the next step promises is less than the rounding error of the loss in single
precision. Of 24 ends of Adam that differed by rounding alone, 11 then stopped L-BFGS within six iterations;
in double precision none did.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from benchmarks.recipes.catalogue import named
from benchmarks.recipes.models import build
from benchmarks.rivals import RivalRun
from hybridcore.averaging import RunningAverage
from hybridcore.baseline import Baseline
from hybridcore.clock import Stopwatch
from hybridcore.config import HybridConfig
from hybridcore.engine import Engine
from hybridcore.events import EventBus
from hybridcore.plugins import Registry
from hybridcore.protocols import StepResult, TaskRun
from hybridcore.readout import ReadOut
from hybridcore.steppers import Stepper
from hybridcore.tasks.building import build_task
from hybridcore_torch import TorchAdapter

__all__ = ["HandOver", "Lbfgs", "lbfgs_of"]

ITERATIONS = 10
"""Of L-BFGS in one call: they share evaluations, while each call evaluates its first point anew."""

GROWN = ("cost", "real_steps", "backward_passes", "skipped", "elapsed")
"""What the second phase adds to in the summary of the first."""


def lbfgs_of(model: torch.nn.Module, loss_fn: Callable[[Any, Any], torch.Tensor]) -> TorchAdapter:
    """A double-precision copy of a model with PyTorch's L-BFGS and DeepXDE's defaults.

    100 pairs, strong Wolfe line search, no tolerance of the change, 1e-8 of the gradient.

    Args:
        model: The model that the first phase trained; it is left as it is.
        loss_fn: Its loss.
    """
    wide = copy.deepcopy(model).double()
    optimizer = torch.optim.LBFGS(
        [p for p in wide.parameters() if p.requires_grad],
        max_iter=ITERATIONS,
        max_eval=100 * ITERATIONS,  # the limit of closures is kept between calls
        history_size=100,
        tolerance_grad=1e-8,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    return TorchAdapter(wide, optimizer, loss_fn)


def _double(batch: Any) -> Any:
    """A batch in double precision; what is no floating-point tensor stays."""
    if isinstance(batch, tuple | list):
        return type(batch)(_double(part) for part in batch)
    return batch.double() if isinstance(batch, torch.Tensor) and batch.is_floating_point() else batch


class Lbfgs(Baseline):
    """L-BFGS until it makes no more progress, or for as many iterations, and at most 1.25 times the closures.

    Args:
        model: What the first phase trained; it has the weights after each step, to be evaluated.
        loss_fn: Its loss.
        events: Who hears of steps.
        clock: Training time.
        config: Gives how often steps are reported.
        before: The summary of the first phase.
        iterations: Largest number of iterations, a multiple of `ITERATIONS`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss_fn: Callable[[Any, Any], torch.Tensor],
        events: EventBus,
        clock: Stopwatch,
        config: HybridConfig,
        before: dict[str, Any],
        iterations: int,
    ) -> None:
        adapter = lbfgs_of(model, loss_fn)
        super().__init__(adapter, events, clock, config.metrics)
        self.model, self.wide, self.optimizer = model, adapter.model, adapter.optimizer
        for name in ("cost", "real_steps", "backward_passes", "skipped"):
            setattr(self.counts, name, before[name])
        self._most = self.counts.cost + 1.25 * iterations
        self.iterations, self.converged, self.over = 0, False, False

    def step(self, batch: Any) -> StepResult:
        """One call of the optimizer: up to `ITERATIONS` iterations."""
        result = super().step(_double(batch))
        self.model.load_state_dict(self.wide.state_dict())
        made, self.iterations = self._made() - self.iterations, self._made()
        # A call that does not get beyond its first iteration has converged (DeepXDE stops there too), and
        # one that the adapter took back for a loss or weights that are not finite would only repeat itself.
        self.converged = made <= 1 or result.skipped
        self.over = self.converged or self.counts.cost >= self._most
        self.counts.real_steps += max(made, 1) - 1
        return result

    def _made(self) -> int:
        return int(next(iter(self.optimizer.state.values()), {}).get("n_iter", 0))


class HandOver:
    """A recipe of two phases, for `hybridcore.runner.train`.

    Args:
        first: How the first is trained: True for the engine, False for the plain loop, or a rival.
        steps: Its real steps.
        iterations: L-BFGS iterations after it.
    """

    def __init__(self, first: bool | RivalRun, steps: int, iterations: int) -> None:
        self._first, self._steps, self._iterations = first, steps, iterations

    def task(self, config: HybridConfig, registry: Registry) -> TaskRun:
        """The configured task, with the rival's own optimizer and read-out where there is one."""
        self._registry = registry
        built = build_task(config, registry) if isinstance(self._first, bool) else None
        return built or self._first.task(config, registry)  # type: ignore[union-attr]

    def stepper(self, config: HybridConfig, task: TaskRun, events: EventBus, clock: Stopwatch) -> Stepper:
        """Both phases as one loop."""
        return _Phases(self._begin(config, task, events, clock), self, config, task, events, clock)

    def _begin(self, config: HybridConfig, task: TaskRun, events: EventBus, clock: Stopwatch) -> Stepper:
        if not isinstance(self._first, bool):
            return self._first.stepper(config, task, events, clock)
        if self._first:
            probes = task.probes
            return Engine.from_config(
                task.adapter, config, probes=probes, registry=self._registry, events=events, clock=clock
            )
        batches = task.probes[: config.probe.batches]
        return Baseline(task.adapter, events, clock, config.metrics, average=config.average, batches=batches)

    def phase_two(
        self, first: Stepper, config: HybridConfig, task: TaskRun, events: EventBus, clock: Stopwatch
    ) -> tuple[Lbfgs, dict[str, Any]]:
        """End the first phase and begin the second; also the first one's summary."""
        summary = first.finish()
        if isinstance(self._first, RivalRun):
            self._first.settle()
        loss_fn = build(named(config.task.options["recipe"]), config.run.seed).loss_fn
        model = task.adapter.model  # type: ignore[attr-defined]
        return Lbfgs(model, loss_fn, events, clock, config, summary, self._iterations), summary

    @property
    def steps(self) -> int:
        """Real steps of the first phase."""
        return self._steps

    @property
    def whole(self) -> int:
        """Real steps of the first phase and iterations of the second."""
        return self._steps + self._iterations


class _Phases:
    """One loop over both phases; see `hybridcore.steppers.Stepper`."""

    def __init__(self, first: Stepper, recipe: HandOver, *built: Any) -> None:
        self._stepper: Stepper = first
        self._recipe, self._built = recipe, built
        self._second: Lbfgs | None = None
        self._before: dict[str, Any] = {}

    @property
    def average(self) -> RunningAverage | None:
        """Of the first phase; L-BFGS's iterates are no cloud that a mean could be better than."""
        return None if self._second is not None else self._stepper.average

    @property
    def read_out(self) -> ReadOut | None:
        """Of the first phase, as the average."""
        return None if self._second is not None else self._stepper.read_out

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the model has the average."""
        return self._averaged() if self._second is None else nullcontext()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        with self._stepper.averaged():
            yield

    @property
    def real_steps(self) -> int:
        """Real steps and iterations; all of them once L-BFGS is over, which has none left to make."""
        if self._second is not None and self._second.over:
            return max(self._recipe.whole, self._second.real_steps)
        return self._stepper.real_steps

    def step(self, batch: Any) -> StepResult:
        """A step of the phase that is on; the last of the first phase hands over at once."""
        result = self._stepper.step(batch)
        if self._second is None and self._stepper.real_steps >= self._recipe.steps:
            self._second, self._before = self._recipe.phase_two(self._stepper, *self._built)
            self._stepper = self._second
        return result

    def summary(self) -> dict[str, Any]:
        """Counts of both phases under the first one's names."""
        own = self._stepper.summary()
        if self._second is None:
            return own
        grown = {name: own[name] for name in GROWN}
        about = {"lbfgs_iterations": self._second.iterations, "lbfgs_converged": self._second.converged}
        return {**self._before, **grown, **about}

    def finish(self) -> dict[str, Any]:
        """The summary."""
        self._stepper.finish()
        return self.summary()
