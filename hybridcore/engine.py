"""The engine: one batch at a time through Warmup, Full, Predict and Correct."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hybridcore.averaging import RunningAverage
from hybridcore.checkpoint.engine_state import engine_state, load_engine_state
from hybridcore.clock import Stopwatch
from hybridcore.config import HybridConfig
from hybridcore.containment import Containment
from hybridcore.errors import PredictionError
from hybridcore.events import Event, EventBus
from hybridcore.foresight import Foresight
from hybridcore.kernels import ChosenKernels, choose
from hybridcore.participants import Participants
from hybridcore.protocols import (
    Action,
    Adapter,
    Controller,
    Corrector,
    Dynamics,
    Monitor,
    Outcome,
    Phase,
    Predictor,
    StepRecord,
    StepResult,
    UsesKernels,
)
from hybridcore.readout import ReadOut
from hybridcore.summary import engine_summary
from hybridcore.wiring import wire

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["Engine"]


class Engine:
    """Runs the cycle around a model that an adapter holds.

    Nothing is written, printed or created by constructing one (F77).

    Args:
        adapter: Model and optimizer.
        config: The whole configuration.
        controller: Chooses actions.
        predictors: By registry name; the first is the default.
        probes: Held-out batches; where empty, the first training batches are remembered.
        events: Who hears what happens.
        clock: Training time.
        corrector: Learns from residuals and corrects; nothing is corrected if None.
        monitors: Watch for divergence; those that the configuration names if None.
        dynamics: Foretells the loss; nothing does if None.

    Example:
        >>> from hybridcore.reference import quadratic
        >>> from hybridcore.predictors.last_update import LastUpdate
        >>> from hybridcore.controllers.fixed import Fixed
        >>> adapter = quadratic(seed=0)
        >>> engine = Engine(adapter, HybridConfig(), Fixed(), {"last-update": LastUpdate()})
        >>> losses = [engine.step(batch=None).loss for _ in range(100)]
        >>> losses[-1] < losses[0], engine.counts.jumps > 0
        (True, True)
    """

    def __init__(
        self,
        adapter: Adapter,
        config: HybridConfig,
        controller: Controller,
        predictors: Mapping[str, Predictor],
        *,
        probes: Iterable[Any] = (),
        events: EventBus | None = None,
        clock: Stopwatch | None = None,
        corrector: Corrector | None = None,
        monitors: Iterable[Monitor] | None = None,
        dynamics: Dynamics | None = None,
        kernels: ChosenKernels | None = None,
    ) -> None:
        self.adapter, self.config = adapter, config
        self.events = events if events is not None else EventBus()
        self.clock = clock if clock is not None else Stopwatch()
        self.kernels = kernels if kernels is not None else ChosenKernels({})
        self.containment = Containment(config.plugins)
        self.participants = Participants(self.containment, controller, predictors)
        self.containment.failures += self.events.containment.failures
        self.events.containment = self.containment
        wiring = wire(
            adapter,
            config,
            self.participants,
            self.containment,
            probes=probes,
            events=self.events,
            clock=self.clock,
            corrector=corrector,
            monitors=monitors,
            dynamics=dynamics,
            kernels=self.kernels,
        )
        self.ranks, self.rates = wiring.ranks, wiring.rates
        self.machine, self.counts, self.statistics = wiring.machine, wiring.counts, wiring.statistics
        self.history, self.reach = wiring.history, wiring.reach
        self.average, self.read_out = wiring.average, wiring.read_out
        self.probes, self.budget = wiring.probes, wiring.budget
        self.corrections, self.recovery = wiring.corrections, wiring.recovery
        self.view, self.rest = wiring.view, wiring.rest
        self._trials, self._judge, self._leaps = wiring.trials, wiring.judge, wiring.leaps
        self._transitions, self._reporter, self._memory = wiring.transitions, wiring.reporter, wiring.memory
        self._started = 0.0

    @classmethod
    def from_config(
        cls,
        adapter: Adapter,
        config: HybridConfig,
        *,
        probes: Iterable[Any] = (),
        registry: Registry | None = None,
        events: EventBus | None = None,
        clock: Stopwatch | None = None,
    ) -> Engine:
        """Build the components that the configuration names.

        Args:
            adapter: Model and optimizer.
            config: The configuration.
            probes: Held-out batches.
            registry: Where names are looked up; loaded from the installed plugins if None.
            events: Who hears what happens.
            clock: Training time.

        Raises:
            PluginError: A name is unknown.
            ConfigError: A component's own table is wrong.
        """
        from hybridcore.assembly import build_parts
        from hybridcore.plugins import load_registry

        registry = registry or load_registry(config.plugins.load, config.plugins.block)
        parts = build_parts(config, registry)
        if config.kernels.name != "auto":
            registry.get("kernel", config.kernels.name)
        model = parts.dynamics
        sizes = model.rollout_sizes(len(parts.predictors)) if isinstance(model, UsesKernels) else None
        return cls(
            adapter,
            config,
            parts.controller,
            parts.predictors,
            probes=probes,
            events=events,
            clock=clock,
            corrector=parts.corrector,
            monitors=parts.monitors,
            dynamics=parts.dynamics,
            kernels=choose(config.kernels.name, registry.kernels, adapter, sizes=sizes),
        )

    @property
    def controller(self) -> Controller:
        """The controller at work; a substitute after it was dropped (F42)."""
        return self.participants.controller

    @property
    def predictors(self) -> dict[str, Predictor]:
        """The predictors at work, by registry name; substitutes where they were dropped (F42)."""
        return self.participants.predictors

    @property
    def foresight(self) -> Foresight | None:
        """The dynamics model at work; None without one."""
        return self.participants.foresight

    # -- the loop ----------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Phase of the next batch."""
        return self.machine.phase

    @property
    def real_steps(self) -> int:
        """Real steps so far, for host loops; all other numbers are in `counts`."""
        return self.counts.real_steps

    @property
    def needs_backward(self) -> bool:
        """Whether the next batch needs a real step; False in a Predict phase of mode ``"step"``."""
        return self._leaps.pending is None

    def step(self, batch: Any) -> StepResult:
        """Use one batch: a real step by the adapter, or a predicted one.

        Args:
            batch: Whatever the adapter's `train_step` takes.

        Returns:
            Loss before the update; NaN for a predicted step whose loss was not measured.

        Raises:
            BatchError: The batch has a form that the model cannot take; nothing changed.
        """
        if self._leaps.pending is not None:
            return self.predicted_step(batch)
        self.before_step()
        result = self.adapter.train_step(batch)
        if not self.probes.complete and not result.skipped:
            self.probes.remember(batch)
        self.after_step(result)
        return result

    def before_step(self) -> None:
        """Tell the engine that a real step is about to change the weights."""
        self.recovery.begin(self.counts.real_steps)
        self._started = time.perf_counter()
        if self.reach is not None and self.counts.real_steps == 0:
            self.reach.start(self.adapter)
        self.history.before_step(self.adapter)

    def after_step(self, result: StepResult) -> None:
        """Tell the engine how the real step went; at a phase's end, the next phase begins here.

        Raises:
            DivergenceError: The run has diverged and recovery is exhausted; the model has its last good
                state (F43).
        """
        seconds = self.ranks.step_seconds(time.perf_counter() - self._started)
        counts = self.counts
        counts.real_steps += 1
        counts.cost += result.evaluations
        counts.backward_passes += result.backward_passes
        self._trials.note_batch(result.n_examples)
        self.budget.run(float(result.evaluations), seconds)
        trial = self._trials.trial
        record = StepRecord(
            counts.real_steps,
            self.phase,
            self.ranks.agreed(result.loss),  # all ranks must find the same signals
            result.grad_norm,
            self.adapter.learning_rate,
            seconds,
            math.nan if trial is None else trial.expected_loss,
            result.skipped,
        )
        if result.skipped:
            counts.skipped += 1
            self._reporter.emit(Event.STEP_SKIPPED, phase=self.phase.value, loss=result.loss)
            if self.foresight is not None:
                self.foresight.interrupt()
        elif math.isfinite(result.loss):
            self._learn(record)
        if not result.overflow:
            self.recovery.observe(record)
        if trial is not None and self._judge.advance(result):
            return
        interrupted = not result.overflow and self.recovery.review()
        if not interrupted and self.machine.tick():
            self._boundary()

    def _learn(self, record: StepRecord) -> None:
        """Take in a real step that changed the weights."""
        self.statistics.observe(record)
        self.participants.observe(record)
        self.history.after_step(self.adapter)
        if self.average is not None:
            with self.clock.paused():  # a second read-out of the run, booked apart
                self.average.after_step(self.adapter)
        self._measure_reach()
        self.corrections.note(record.loss)
        if self.foresight is not None:
            self.foresight.observe(record)
        self._reporter.real_step(record)

    def _measure_reach(self) -> None:
        if self.reach is not None and self.history.has_update:
            aligned = "alignment" in self.history.needs and self.view.is_normalised()
            self.reach.observe(self.counts.real_steps, self.history, self.adapter, aligned=aligned)

    def predicted_step(self, batch: Any = None) -> StepResult:
        """Apply one share of the pending change; consumes a batch, takes no backward pass (F21).

        Args:
            batch: The batch; read only where ``phases.forward_every`` asks for a forward pass.

        Raises:
            PredictionError: No Predict phase of mode ``"step"`` is open.
        """
        loss = self._leaps.share(batch)
        self.machine.tick()
        stop = self._leaps.over(loss) or self._doubt()
        if stop is not None:
            self._leaps.land(stop)
            self.rest.landed()
            self.machine.done = self.machine.length
            self._boundary()
        return StepResult(loss, backward_passes=0)

    def _doubt(self) -> str | None:
        """Why the controller ends the pending change early, or None (F5)."""
        pending = self._leaps.pending
        assert pending is not None
        confidence = pending.jump.confidence
        if self.participants.proceed(self.view.state(confidence=confidence)):
            return None
        return (
            f"early exit after {pending.done} of {pending.steps} predicted steps: confidence {confidence:.3f}"
        )

    def force_full(self, steps: int) -> None:
        """Make the next `steps` batches Full (F8); what is left of a pending change is dropped."""
        self._transitions.force_full(steps)

    def finish(self) -> dict[str, Any]:
        """Judge an open trial with what is known, and give the run's summary.

        Raises:
            DivergenceError: The run ends in a state that has diverged, and there is none to go back to.
        """
        self._leaps.drop("the run is over")
        self._judge.conclude()
        self.corrections.finish()
        self.recovery.finish()
        self.containment.watchdog.stop()
        return self.summary()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the model has the running average of its weights, for evaluation.

        Afterwards the weights, and BatchNorm statistics where there are any, are back bit for bit. Before
        the first sample of the average the weights stay what they are.

        Raises:
            PredictionError: The configuration keeps no average.
        """
        average, _ = self._kept_average()
        with average.in_place(self.adapter, self.probes.batches):
            yield

    def adopt_average(self) -> None:
        """Make the running average the model's weights for good, after judging an open trial.

        Raises:
            PredictionError: The configuration keeps no average.
        """
        average, _ = self._kept_average()
        self.finish()
        self._adopt(average)

    @contextmanager
    def chosen(self) -> Iterator[bool]:
        """Context in which the model has the weights to read the run out by.

        Its own, or their running average where that has the lower loss on held-out examples; see
        `hybridcore.readout.ReadOut`. Gives whether it is the average; afterwards all is back bit for bit.

        Raises:
            PredictionError: The configuration keeps no average.
        """
        _, read_out = self._kept_average()
        with read_out.in_place() as averaged:
            yield averaged

    def adopt_chosen(self) -> bool:
        """Make the better of the weights and their average the model's for good, after judging an open trial.

        Returns:
            Whether that is the average.

        Raises:
            PredictionError: The configuration keeps no average.
        """
        average, read_out = self._kept_average()
        self.finish()
        averaged = read_out.decide(anew=True)
        if averaged:
            self._adopt(average)
        return averaged

    def _adopt(self, average: RunningAverage) -> None:
        average.adopt(self.adapter, self.probes.batches)
        self.history.restart()

    def _kept_average(self) -> tuple[RunningAverage, ReadOut]:
        if self.average is None or self.read_out is None:
            raise PredictionError(
                "no average of the weights is kept",
                where="average.enabled",
                got=False,
                expected="true",
                fix="set average.enabled = true",
            )
        return self.average, self.read_out

    def summary(self) -> dict[str, Any]:
        """Counts, credit, overhead and memory so far, as plain data."""
        return engine_summary(self)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on, as a tree that `hybridcore.checkpoint` can write.

        Its arrays are the engine's own; take the tree apart, or copy it, before the next batch.
        """
        return engine_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, in an engine of the same model and configuration (F53)."""
        load_engine_state(self, state)

    # -- phases ------------------------------------------------------------------------------------

    def _boundary(self) -> None:
        """Let the controller choose until a phase begins that takes batches."""
        if self.foresight is not None:
            self.foresight.train(self._trials.examples)
        while self.machine.at_boundary:
            state = self.view.state()
            action = self.participants.choose(state, self.machine.permitted)
            phase, rule = self.machine.permitted(action.phase)
            if phase is Phase.PREDICT and not state.may_predict:
                phase, rule = Phase.FULL, state.why_not
            if phase is Phase.PREDICT:
                self._predict(action)
            elif phase is action.phase:
                quiet = phase is Phase.CORRECT and self._transitions.in_continuous_trial
                self._transitions.enter(phase, max(1, action.length), action.reason, quiet=quiet)
                self.rest.after(state, action)
            else:
                self._transitions.enter(phase, self.config.phases.full_steps, rule or action.reason)

    # -- jumps -------------------------------------------------------------------------------------

    def _predict(self, action: Action) -> None:
        """Propose, check, open a trial and apply; on refusal a Full phase follows."""
        name = action.predictor or next(iter(self.predictors))
        jump, refusal = self._leaps.propose(action, name)
        if jump is None:
            self._refuse(name, action.horizon, refusal)
            return
        self.rest.proposed()
        if self.config.phases.predict_mode == "step" and not action.continuous:
            self._transitions.enter(Phase.PREDICT, self.config.phases.predict_steps, action.reason)
            self._leaps.spread(jump)
            self._memory.optimizer_rests()
            return
        worse = self._leaps.leap(jump)
        if worse is not None:
            self._refuse(name, action.horizon, worse)
            return
        self._transitions.enter(Phase.PREDICT, 0, action.reason, quiet=self._transitions.in_continuous_trial)
        self.counts.predicted_steps += max(0.0, jump.horizon)
        self._leaps.landed(jump, action.reason, share=1.0, continuous=action.continuous)
        if self.foresight is not None:
            self.foresight.jumped(action)
        if not action.continuous:
            self.rest.landed()

    def _refuse(self, name: str, horizon: float, reason: str) -> None:
        self.counts.refused += 1
        resume = self.budget.failed(self.counts.real_steps)
        self._reporter.refused(name, horizon, reason)
        self.participants.feedback(
            Outcome(False, name, horizon, 0, 0, math.nan, math.nan, 0.0, 0.0, math.nan, reason)
        )
        self._transitions.enter(
            Phase.FULL, self.config.phases.full_steps, f"{reason}; next try at step {resume}"
        )
