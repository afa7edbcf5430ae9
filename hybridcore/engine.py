"""The engine: one batch at a time through Warmup, Full, Predict and Correct."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import array_api_compat.numpy as compat_numpy
import numpy as np

from hybridcore.averaging import RunningAverage
from hybridcore.budget import Budget
from hybridcore.checkpoint.engine_state import engine_state, load_engine_state
from hybridcore.clock import Stopwatch
from hybridcore.config import HybridConfig
from hybridcore.containment import Containment, Member
from hybridcore.correction.keeper import CorrectionKeeper
from hybridcore.correction.none import NoCorrection
from hybridcore.counts import Counts
from hybridcore.divergence import DivergenceWatch, build_monitors
from hybridcore.errors import HybridCoreError, MemoryBudgetError, PluginError, PredictionError
from hybridcore.events import Event, EventBus
from hybridcore.foresight import Foresight
from hybridcore.history import History
from hybridcore.kernels import ChosenKernels, choose
from hybridcore.leaps import Leaps
from hybridcore.memory import Memory, budget_bytes
from hybridcore.phases import PhaseMachine
from hybridcore.predictors.controls import NoPrediction
from hybridcore.probes import ProbeSet
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
from hybridcore.ranks import Ranks, Timed
from hybridcore.rates import RateControl
from hybridcore.reach import Reach
from hybridcore.recovery import Recovery
from hybridcore.replies import check_action
from hybridcore.reporting import Reporter
from hybridcore.rewind import Rewind
from hybridcore.state import EngineState, Statistics
from hybridcore.substitutes import OnlyTrains
from hybridcore.trials import Trial, TrialKeeper
from hybridcore.verdict import Verdict

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
        self.adapter, self.config, self.controller = adapter, config, controller
        self.predictors = dict(predictors)
        if not self.predictors:
            raise PluginError(
                "the engine has no predictor",
                where="predictor.name",
                expected="at least one predictor",
                fix="set predictor.name; `hybridcore plugins list` shows what is installed",
            )
        self.ranks = Ranks(adapter)
        self.events = events if events is not None else EventBus()
        self.containment = Containment(config.plugins)
        self.containment.failures += self.events.containment.failures
        self.events.containment = self.containment
        self.containment.substitute |= {
            "predictor": self._drop_predictor,
            "controller": self._drop_controller,
        }
        self.clock = clock if clock is not None else Stopwatch()
        self.machine = PhaseMachine(config.phases)
        self.statistics = Statistics()
        self.probes = ProbeSet(probes, config.probe.batches)
        self.budget = Budget(config.budget)
        self.ranks.require_alike(config, len(self.probes))
        needs = set(controller.needs).union(*(p.needs for p in self.predictors.values()))
        self.average = RunningAverage(config.average) if config.average.enabled else None
        corrector = corrector if corrector is not None else NoCorrection()
        apart = RunningAverage.reserved_bytes(adapter) if self.average is not None else 0
        apart += CorrectionKeeper.reserved_bytes(adapter, corrector)
        self._apart = apart
        reserved = apart + adapter.snapshot_nbytes()
        self._memory = Memory(adapter, config.memory)
        budget = budget_bytes(config.history, adapter)
        self._windows = max(getattr(p, "windows", 0) for p in self.predictors.values())
        self.kernels = kernels if kernels is not None else ChosenKernels({})
        arithmetic = self.ranks.kernels(self.kernels)
        self.history = History(
            adapter.layout,
            adapter.xp,
            config.history,
            needs,
            reserved,
            self._windows,
            arithmetic,
            budget,
            self.ranks.least,
        )
        streams = np.random.SeedSequence(config.run.seed).spawn(len(self.predictors))
        self._observers: list[Member] = []
        for (name, predictor), stream in zip(list(self.predictors.items()), streams, strict=True):
            rng = np.random.default_rng(stream)
            self._guard("predictor", name, "reset", predictor.reset, adapter.layout, rng)
        self._list_observers()
        self.reach = Reach(adapter.xp) if "reach" in self.history.needs else None
        self.counts = Counts()
        self.events.step = lambda: self.counts.real_steps
        self._reporter = Reporter(self.events, self.clock, self.counts, config.metrics)
        self.rates = RateControl(adapter)
        self._trials = TrialKeeper(
            adapter,
            config,
            self.history,
            self.statistics,
            self.probes,
            self.budget,
            self.reach,
            self._on_probe,
            apart,
            self.rates,
            self.ranks,
        )
        self.corrections = CorrectionKeeper(
            adapter,
            config,
            corrector,
            self.history,
            self.statistics,
            self._trials,
            self.budget,
            self.counts,
            self._reporter,
            self.ranks,
            self.containment,
        )
        watch = DivergenceWatch(
            build_monitors(config.divergence) if monitors is None else monitors,
            config.divergence,
            self.containment,
        )
        host = Rewind(
            self._trials,
            self.history,
            self.statistics,
            self.reach,
            self.average,
            self.budget,
            self.counts,
            self._reporter,
            apart,
            lambda reason: self._fail_trial(reason, None),
            self.force_full,
            self._enter_full,
        )
        self.recovery = Recovery(
            adapter, config, watch, self.predictors, self.rates, self._reporter, host, self.containment
        )
        self.recovery.states.agree = self.ranks.all_true
        self._trials.release = self._release
        self._leaps = Leaps(
            adapter,
            config,
            self.predictors,
            self.history,
            self.probes,
            self._trials,
            self.corrections,
            self.counts,
            self._reporter,
            self.recovery.restraint,
            self.recovery.refused,
            self.containment,
        )
        self.foresight: Foresight | None = None
        if dynamics is not None:
            foresight = Foresight(
                dynamics,
                config,
                adapter,
                self.statistics,
                self.history,
                self.machine,
                self.counts,
                list(self.predictors),
                compat_numpy,
                self.containment,
            )
            foresight.keeper.agree = self.ranks.mean
            self.foresight = None if foresight.lost else foresight
            self.containment.substitute["dynamics"] = self._drop_dynamics
        if self.ranks.many and isinstance(controller, Timed):
            controller.clock = self.ranks.clock
        self.containment.make_sound = self._make_sound
        self._normalised: bool | None = None
        self._started = 0.0
        self._awake_since = 0
        self._idle = 0
        self._settle_warmup()
        self.containment.watchdog.stop()  # the next call starts it again

    # -- plugins that fail -------------------------------------------------------------------------

    def _guard(self, kind: str, name: str, method: str, function: Callable[..., None], *args: Any) -> None:
        """Call what returns nothing; typed errors, which say what is wrong with a set-up, pass."""
        self.containment.call(kind, name, method, function, *args, otherwise=None, passes=(HybridCoreError,))

    def _list_observers(self) -> None:
        self._observers = [("predictor", name, p.observe) for name, p in self.predictors.items()]

    def _drop_predictor(self, name: str) -> None:
        self.predictors[name] = NoPrediction()
        self._list_observers()

    def _drop_controller(self, name: str) -> None:
        self.controller = OnlyTrains()

    def _drop_dynamics(self, name: str) -> None:
        self.foresight = None

    def _make_sound(self) -> None:
        """Undo an open trial before an error leaves the engine."""
        self._leaps.pending = None
        if self._trials.trial is not None:
            self._trials.undo(proven=True)

    def _release(self, error: MemoryBudgetError) -> None:
        """Give the good states' memory to a trial: predictions are what the memory was asked for."""
        self.recovery.states.give_up(error)
        self._trials.reserved = self._apart

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
        if trial is not None and self._advance_trial(result):
            return
        interrupted = not result.overflow and self.recovery.review()
        if not interrupted and self.machine.tick():
            self._boundary()

    def _learn(self, record: StepRecord) -> None:
        """Take in a real step that changed the weights."""
        self.statistics.observe(record)
        self.containment.each("observe", self._observers, record)
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
        if self.reach is None or not self.history.has_update:
            return
        if self.reach.due(self.counts.real_steps):
            self.reach.sample(self.counts.real_steps, self.history, self.adapter)
        elif self.reach.due(self.counts.real_steps + 1):
            self.history.last_update()  # the next sample needs this step's update too

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
            self._awake_since = self.counts.real_steps
            self.machine.done = self.machine.length
            self._boundary()
        return StepResult(loss, backward_passes=0)

    def _doubt(self) -> str | None:
        """Why the controller ends the pending change early, or None (F5)."""
        pending = self._leaps.pending
        assert pending is not None
        confidence = pending.jump.confidence
        goes_on = self.containment.call(
            "controller",
            self.controller.name,
            "proceed",
            self.controller.proceed,
            self._state(confidence=confidence),
            otherwise=False,
            check=bool,
        )
        if goes_on:
            return None
        return (
            f"early exit after {pending.done} of {pending.steps} predicted steps: confidence {confidence:.3f}"
        )

    def force_full(self, steps: int) -> None:
        """Make the next `steps` batches Full (F8); what is left of a pending change is dropped."""
        left = self.phase
        self.machine.force_full(steps)
        self._leaps.drop("a Full block is forced")
        self._reporter.phase_end(left.value)
        self._announce("a Full block is forced")

    def finish(self) -> dict[str, Any]:
        """Judge an open trial with what is known, and give the run's summary.

        Raises:
            DivergenceError: The run ends in a state that has diverged, and there is none to go back to.
        """
        self._leaps.drop("the run is over")
        trial = self._trials.trial
        if trial is not None and trial.continuous and trial.real_steps == 0:
            self._take_back(trial)
        elif trial is not None:
            self._judge_trial()
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
        with self._required_average().in_place(self.adapter, self.probes.batches):
            yield

    def adopt_average(self) -> None:
        """Make the running average the model's weights for good, after judging an open trial.

        Raises:
            PredictionError: The configuration keeps no average.
        """
        average = self._required_average()
        self.finish()
        average.adopt(self.adapter, self.probes.batches)
        self.history.restart()

    def _required_average(self) -> RunningAverage:
        if self.average is None:
            raise PredictionError(
                "no average of the weights is kept",
                where="average.enabled",
                got=False,
                expected="true",
                fix="set average.enabled = true",
            )
        return self.average

    def summary(self) -> dict[str, Any]:
        """Counts, credit, overhead and memory so far, as plain data."""
        counts = self.counts
        return {
            "real_steps": counts.real_steps,
            "backward_passes": counts.backward_passes,
            "predicted_steps": counts.predicted_steps,
            "jumps": counts.jumps,
            "refused": counts.refused,
            "verdicts_kept": counts.kept,
            "verdicts_failed": counts.failed,
            "rollbacks": counts.rollbacks,
            "skipped": counts.skipped,
            "residuals": len(self.corrections.store),
            "residual_bytes": self.corrections.store.nbytes,
            "corrections": counts.corrections,
            "corrections_reverted": counts.corrections_reverted,
            "micro_corrections": counts.micro_corrections,
            "credit_steps": self.budget.credit_steps,
            "credit_seconds": self.budget.credit_seconds,
            "overhead_share": self.budget.overhead_share,
            "history_bytes": self.history.planned_bytes(),
            "budget_bytes": int(self.config.history.memory_budget_mib * 2**20),
            "probes": self.probes.count,
            "average_seconds": self.average.seconds if self.average is not None else 0.0,
            "cost": counts.cost,
            "elapsed": self.clock.elapsed(),
            **self.recovery.summary(),
            **(self.foresight.summary() if self.foresight is not None else {}),
            "kernels": self.kernels.summary(),
            "plugins_dropped": [" ".join(lost) for lost in self.containment.dropped],
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on, as a tree that `hybridcore.checkpoint` can write.

        Its arrays are the engine's own; take the tree apart, or copy it, before the next batch.
        """
        return engine_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, in an engine of the same model and configuration (F53)."""
        load_engine_state(self, state)

    # -- phases ------------------------------------------------------------------------------------

    def _settle_warmup(self) -> None:
        """Without warm-up steps, the first batch is already a Full one."""
        if self.machine.at_boundary:
            self.machine.enter(Phase.FULL, self.config.phases.full_steps)

    def _boundary(self) -> None:
        """Let the controller choose until a phase begins that takes batches."""
        if self.foresight is not None:
            self.foresight.train(self._trials.examples)
        while self.machine.at_boundary:
            state = self._state()
            action = self._choose(state)
            phase, rule = self.machine.permitted(action.phase)
            if phase is Phase.PREDICT and not state.may_predict:
                phase, rule = Phase.FULL, state.why_not
            if phase is Phase.PREDICT:
                self._predict(action)
            elif phase is action.phase:
                quiet = phase is Phase.CORRECT and self._in_continuous_trial
                self._enter(phase, max(1, action.length), action.reason, quiet=quiet)
                self._rest(state, action)
            else:
                self._enter(phase, self.config.phases.full_steps, rule or action.reason)

    def _choose(self, state: EngineState) -> Action:
        """The controller's action; that of its substitute where it fails."""

        def check(action: Action | None) -> None:
            check_action(action, self.predictors)
            assert action is not None
            self.machine.permitted(action.phase)

        controller, substitute = self.controller, OnlyTrains().choose(state)
        return self.containment.call(
            "controller",
            controller.name,
            "choose",
            controller.choose,
            state,
            otherwise=substitute,
            check=check,
        )

    @property
    def _in_continuous_trial(self) -> bool:
        trial = self._trials.trial
        return trial is not None and trial.continuous and trial.jumps > 1

    def _enter(self, phase: Phase, length: int, reason: str, *, quiet: bool = False) -> None:
        left = self.machine.phase
        self.machine.enter(phase, length)
        if quiet:
            return
        self._reporter.phase_end(left.value)
        self._announce(reason, routine=phase is Phase.FULL and self._in_continuous_trial)

    def _enter_full(self, reason: str) -> bool:
        """Begin a Full phase after a rollback, unless warm-up or a forced block has to go on."""
        self.corrections.forget()
        begins = self.phase is not Phase.WARMUP and not self.machine.forced_full_left
        if begins:
            self._enter(Phase.FULL, self.config.phases.full_steps, reason)
        return begins

    def _announce(self, reason: str, *, routine: bool = False) -> None:
        self._reporter.phase_start(self.machine.phase.value, self.machine.length, reason, routine=routine)

    def _state(self, confidence: float | None = None) -> EngineState:
        straightness = self.history.straightness()
        if confidence is None:
            confidence = min(max(straightness, 0.0), 1.0) if math.isfinite(straightness) else 0.0
            if self.foresight is not None and confidence > 0.0:
                name, horizon = next(iter(self.predictors)), float(self.history.window)
                confidence = min(confidence, self.foresight.confidence(name, horizon))
        _, rule = self.machine.permitted(Phase.PREDICT) if self.phase is not Phase.PREDICT else (None, None)
        why_not = rule or self._why_not()
        return EngineState(
            step=self.counts.real_steps,
            phase=self.phase,
            consecutive_predicts=self.machine.consecutive_predicts,
            may_predict=why_not is None,
            why_not=why_not,
            confidence=confidence,
            straightness=straightness,
            reach=self.reach.horizon if self.reach is not None else math.nan,
            next_sample=self.reach.next_sample if self.reach is not None else 0,
            trial_steps_left=self._trials.steps_left,
            curve_known=self._trials.knows_curve(self.counts.cost),
            learning_rate=self.statistics.learning_rate,
            peak_learning_rate=self.statistics.peak_learning_rate,
            momentum_memory=self.adapter.momentum_memory,
            normalised=self._is_normalised(),
            forecast=self.foresight.forecast if self.foresight is not None else None,
            statistics=self.statistics,
            predictor_ready={n: self._leaps.ready(n) for n in list(self.predictors)},
            default_predictor=next(iter(self.predictors)),
            window=self.history.window,
            raised_threshold=self.recovery.restraint.threshold(self.counts.real_steps),
        )

    def _is_normalised(self) -> bool:
        """Whether the optimizer keeps a second moment; asked once, since the answer costs a pass."""
        if self._normalised is None and self.counts.real_steps > self.counts.skipped:
            self._normalised = self.adapter.moments().get("v_std", 0.0) > 0.0
        return bool(self._normalised)

    def _why_not(self) -> str | None:
        if self._trials.trial is not None:
            return None
        if self.counts.real_steps < self.budget.resume_at:
            return f"paused until step {self.budget.resume_at}"
        if not self.probes.complete:
            return "no probe examples yet"
        steps, seconds = self._trials.expected_cost(self.history.window)
        if not self.budget.allows(steps, seconds):
            return "the overhead budget is spent"
        return None

    def _rest(self, state: EngineState, action: Action) -> None:
        """Sleep while nothing can be predicted; the history wakes early enough to be ready again."""
        if action.observe is not None:
            self.history.average(action.averaged)
            if action.observe and not self.history.active:
                self.history.wake()
            elif self.history.active and not action.observe:
                self.history.sleep(keep_buffers=True)
            return
        lead = max(3, self._windows) * self.history.window + self.config.phases.full_steps
        if self.phase is not Phase.FULL or self._trials.trial is not None:
            return
        pause = self.budget.resume_at - self.counts.real_steps
        if self.history.active:
            if state.may_predict and self.counts.real_steps - self._awake_since > lead:
                self._idle += 1
                pause = self.budget.pause(self._idle)
                self.budget.resume_at = self.counts.real_steps + pause
            if pause > lead or state.why_not == "the overhead budget is spent":
                self.history.sleep()
        elif pause <= lead and state.why_not != "the overhead budget is spent":
            self.history.wake()
            self._awake_since = self.counts.real_steps

    # -- jumps -------------------------------------------------------------------------------------

    def _predict(self, action: Action) -> None:
        """Propose, check, open a trial and apply; on refusal a Full phase follows."""
        name = action.predictor or next(iter(self.predictors))
        jump, refusal = self._leaps.propose(action, name)
        if jump is None:
            self._refuse(name, action.horizon, refusal)
            return
        self._idle = 0
        if self.config.phases.predict_mode == "step" and not action.continuous:
            self._enter(Phase.PREDICT, self.config.phases.predict_steps, action.reason)
            self._leaps.spread(jump)
            self._memory.optimizer_rests()
            return
        worse = self._leaps.leap(jump)
        if worse is not None:
            self._refuse(name, action.horizon, worse)
            return
        self._enter(Phase.PREDICT, 0, action.reason, quiet=self._in_continuous_trial)
        self.counts.predicted_steps += max(0.0, jump.horizon)
        self._leaps.landed(jump, action.reason, share=1.0, continuous=action.continuous)
        if self.foresight is not None:
            self.foresight.jumped(action)
        if not action.continuous:
            self._awake_since = self.counts.real_steps

    def _refuse(self, name: str, horizon: float, reason: str) -> None:
        self.counts.refused += 1
        resume = self.budget.failed(self.counts.real_steps)
        self._reporter.refused(name, horizon, reason)
        self._feedback(Outcome(False, name, horizon, 0, 0, math.nan, math.nan, 0.0, 0.0, math.nan, reason))
        self._enter(Phase.FULL, self.config.phases.full_steps, f"{reason}; next try at step {resume}")

    # -- verdicts ----------------------------------------------------------------------------------

    def _advance_trial(self, result: StepResult) -> bool:
        """Count a real step of the open trial; True when it was rolled back."""
        broken = self._trials.guard(result)
        if broken is not None:
            self._fail_trial(broken, None)
            return True
        self.corrections.settle(may_act=self._trials.steps_left > 0)
        if self._trials.steps_left == 0:
            return self._judge_trial()
        return False

    def _take_back(self, trial: Trial) -> None:
        """Undo a repetition that no real step has followed: nothing can be said of it."""
        self.adapter.restore(trial.snapshot)
        self._trials.close()
        self.corrections.failed()
        self.counts.predicted_steps -= trial.predicted
        self.counts.jumps -= trial.jumps
        reason = "the run is over before the jump can be judged"
        self._reporter.emit(Event.ROLLBACK, to_step=trial.step, reason=reason)

    def _judge_trial(self) -> bool:
        verdict = self._trials.verdict(self.counts.cost, self.counts.predicted_steps)
        if verdict is not None and not verdict.kept:
            self._fail_trial(verdict.reason, verdict)
            return True
        trial = self._trials.close()
        reason = verdict.reason if verdict is not None else "the loss stayed under the guard"
        per_step = self.statistics.seconds_per_step
        outcome = trial.outcome(
            kept=True,
            reason=reason,
            straightness=self.history.straightness(),
            verdict=verdict,
            seconds_per_step=per_step,
        )
        self.counts.kept += 1
        self.budget.earn(outcome.credit_steps, outcome.credit_seconds)
        if outcome.behind_steps:
            behind = min(outcome.behind_steps, float(trial.real_steps))
            self.budget.lose(behind, behind * per_step)
        if verdict is None or outcome.credit_steps > 0.0:
            self.budget.succeeded()
        elif not trial.continuous:
            self.budget.failed(self.counts.real_steps)
        self._tell(outcome)
        return False

    def _fail_trial(self, reason: str, verdict: Verdict | None) -> None:
        trial, origin = self._trials.undo(proven=verdict is not None and math.isfinite(verdict.gain))
        if self.average is not None:
            self.average.restart()
        self._leaps.pending = None
        self.corrections.failed()
        if self.foresight is not None:
            self.foresight.interrupt()
        self.recovery.trial_failed(origin.step)
        self.counts.failed += 1
        self.counts.rollbacks += 1
        resume = self.budget.failed(self.counts.real_steps)
        self._tell(trial.outcome(kept=False, reason=reason, straightness=math.nan, verdict=verdict))
        self._reporter.emit(Event.ROLLBACK, to_step=origin.step, reason=reason)
        reason = f"rolled back to step {origin.step}; next try at step {resume}"
        self._enter(Phase.FULL, self.config.phases.full_steps, reason)

    def _tell(self, outcome: Outcome) -> None:
        self._reporter.verdict(outcome)
        self._feedback(outcome)

    def _feedback(self, outcome: Outcome) -> None:
        controller = self.controller
        self.containment.call(
            "controller", controller.name, "feedback", controller.feedback, outcome, otherwise=None
        )

    def _on_probe(self, examples: int, loss: float, cost: float) -> None:
        self.counts.cost += cost
        self._reporter.emit(Event.PROBE, examples=examples, loss=loss, cost=cost)
