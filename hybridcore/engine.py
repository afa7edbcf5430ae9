"""The engine: one batch at a time through Warmup, Full, Predict and Correct."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridcore.averaging import RunningAverage
from hybridcore.budget import Budget
from hybridcore.clock import Stopwatch
from hybridcore.config import HybridConfig
from hybridcore.errors import HybridCoreError, PluginError, PredictionError
from hybridcore.events import Event, EventBus
from hybridcore.history import History
from hybridcore.jumps import Jump, JumpLimiter
from hybridcore.phases import PhaseMachine
from hybridcore.probes import ProbeSet
from hybridcore.protocols import (
    Action,
    Adapter,
    Buckets,
    Controller,
    LinearisingPredictor,
    MeasuringPredictor,
    Outcome,
    Phase,
    Prediction,
    Predictor,
    StepRecord,
    StepResult,
)
from hybridcore.reach import Reach
from hybridcore.state import EngineState, Statistics
from hybridcore.trials import TrialKeeper
from hybridcore.verdict import Verdict

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["Engine"]

logger = logging.getLogger("hybridcore")


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

    Example:
        >>> from hybridcore.reference import quadratic
        >>> from hybridcore.predictors.last_update import LastUpdate
        >>> from hybridcore.controllers.fixed import Fixed
        >>> adapter = quadratic(seed=0)
        >>> engine = Engine(adapter, HybridConfig(), Fixed(), {"last-update": LastUpdate()})
        >>> losses = [engine.step(batch=None).loss for _ in range(100)]
        >>> losses[-1] < losses[0], engine.jumps > 0
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
        self.events = events if events is not None else EventBus()
        self.clock = clock if clock is not None else Stopwatch()
        self.machine = PhaseMachine(config.phases)
        self.statistics = Statistics()
        self.probes = ProbeSet(probes, config.probe.batches)
        self.budget = Budget(config.budget)
        needs = set(controller.needs).union(*(p.needs for p in self.predictors.values()))
        self.average = RunningAverage(config.average) if config.average.enabled else None
        apart = RunningAverage.reserved_bytes(adapter) if self.average is not None else 0
        reserved = apart + adapter.snapshot_nbytes()
        self._windows = max(getattr(p, "windows", 0) for p in self.predictors.values())
        self.history = History(adapter.layout, adapter.xp, config.history, needs, reserved, self._windows)
        self._limiter = JumpLimiter(adapter.layout, adapter.xp, config.groups)
        streams = np.random.SeedSequence(config.run.seed).spawn(len(self.predictors))
        for predictor, stream in zip(self.predictors.values(), streams, strict=True):
            predictor.reset(adapter.layout, np.random.default_rng(stream))
        self.reach = Reach(adapter.xp) if "reach" in self.history.needs else None
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
        )
        self._pending: tuple[Jump, int, int] | None = None
        self._started = 0.0
        self._awake_since = 0
        self._idle = 0
        self.cost = 0.0
        self.real_steps = self.backward_passes = self.skipped = 0
        self.predicted_steps = 0.0
        self.jumps = self.refused = self.kept = self.failed = self.rollbacks = 0
        self._settle_warmup()

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
        """Build the controller and the predictors that the configuration names.

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
        from hybridcore.components import build_component
        from hybridcore.plugins import load_registry

        registry = registry or load_registry(config.plugins.load, config.plugins.block)
        controller = build_component(
            registry.get("controller", config.controller.name),
            config.controller.options.get(config.controller.name, {}),
            f"controller.{config.controller.name}",
        )
        names = dict.fromkeys([config.predictor.name, *getattr(controller, "portfolio", ())])
        predictors = {
            name: build_component(
                registry.get("predictor", name),
                config.predictor.options.get(name, {}),
                f"predictor.{name}",
            )
            for name in names
        }
        return cls(adapter, config, controller, predictors, probes=probes, events=events, clock=clock)

    # -- the loop ----------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Phase of the next batch."""
        return self.machine.phase

    @property
    def needs_backward(self) -> bool:
        """Whether the next batch needs a real step; False in a Predict phase of mode ``"step"``."""
        return self._pending is None

    def step(self, batch: Any) -> StepResult:
        """Use one batch: a real step by the adapter, or a predicted one.

        Args:
            batch: Whatever the adapter's `train_step` takes.

        Returns:
            Loss before the update; NaN for a predicted step whose loss was not measured.

        Raises:
            BatchError: The batch has a form that the model cannot take; nothing changed.
        """
        if self._pending is not None:
            return self.predicted_step(batch)
        self.before_step()
        result = self.adapter.train_step(batch)
        if not self.probes.complete and not result.skipped:
            self.probes.remember(batch)
        self.after_step(result)
        return result

    def before_step(self) -> None:
        """Tell the engine that a real step is about to change the weights."""
        self._started = time.perf_counter()
        if self.reach is not None and self.real_steps == 0:
            self.reach.start(self.adapter)
        self.history.before_step(self.adapter)

    def after_step(self, result: StepResult) -> None:
        """Tell the engine how the real step went; at a phase's end, the next phase begins here."""
        seconds = time.perf_counter() - self._started
        self.real_steps += 1
        self.cost += result.evaluations
        self.backward_passes += result.backward_passes
        self._trials.note_batch(result.n_examples)
        self.budget.run(float(result.evaluations), seconds)
        if result.skipped:
            self.skipped += 1
            self.events.emit(
                Event.STEP_SKIPPED, step=self.real_steps, phase=self.phase.value, loss=result.loss
            )
        else:
            record = StepRecord(
                self.real_steps,
                self.phase,
                result.loss,
                result.grad_norm,
                self.adapter.learning_rate,
                seconds,
            )
            self.statistics.observe(record)
            for predictor in self.predictors.values():
                predictor.observe(record)
            self.history.after_step(self.adapter)
            if self.average is not None:
                self.average.after_step(self.adapter)
            self._measure_reach()
            if self.events.heard and self.real_steps % self.config.metrics.step_every == 0:
                self._emit_step(record)
        rolled_back = self._trials.trial is not None and self._advance_trial(result)
        if not rolled_back and self.machine.tick():
            self._boundary()

    def _measure_reach(self) -> None:
        if self.reach is None or not self.history.has_update:
            return
        if self.reach.due(self.real_steps):
            self.reach.sample(self.real_steps, self.history, self.adapter)
        elif self.reach.due(self.real_steps + 1):
            self.history.last_update()  # the next sample needs this step's update too

    def predicted_step(self, batch: Any = None) -> StepResult:
        """Apply one share of the pending change; consumes a batch, takes no backward pass (F21).

        Args:
            batch: The batch; read only where ``phases.forward_every`` asks for a forward pass.

        Raises:
            PredictionError: No Predict phase of mode ``"step"`` is open.
        """
        if self._pending is None:
            raise PredictionError(
                "there is no predicted step to take",
                where=f"step {self.real_steps}",
                expected="a Predict phase of mode 'step'",
                fix="ask `needs_backward` before each batch",
            )
        jump, steps, done = self._pending
        jump.apply(self.adapter, 1.0 / steps)
        done += 1
        self.predicted_steps += max(0.0, jump.horizon) / steps
        loss = math.nan
        every = self.config.phases.forward_every
        if every and done % every == 0:
            loss = float(np.mean(self.adapter.probe_loss(batch)))
            self.cost += 1.0 / 3.0
        self.events.emit(
            Event.PREDICTED_STEP,
            step=self.real_steps,
            predicted_steps=self.predicted_steps,
            loss=loss,
            elapsed=self.clock.elapsed(),
            cost=self.cost,
        )
        self._pending = (jump, steps, done)
        self.machine.tick()
        stop = self._why_stop(jump, steps, done, loss)
        if stop is not None:
            self._pending = None
            self._landed(jump, stop, share=done / steps, continuous=False)
            self.machine.done = self.machine.length
            self._boundary()
        return StepResult(loss, backward_passes=0)

    def force_full(self, steps: int) -> None:
        """Make the next `steps` batches Full (F8); what is left of a pending change is dropped."""
        left = self.phase
        self.machine.force_full(steps)
        self._drop_pending("a Full block is forced")
        self.events.emit(Event.PHASE_END, step=self.real_steps, phase=left.value)
        self._announce("a Full block is forced")

    def finish(self) -> dict[str, Any]:
        """Judge an open trial with what is known, and give the run's summary."""
        self._drop_pending("the run is over")
        if self._trials.trial is not None:
            self._judge_trial()
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
        return {
            "real_steps": self.real_steps,
            "backward_passes": self.backward_passes,
            "predicted_steps": self.predicted_steps,
            "jumps": self.jumps,
            "refused": self.refused,
            "verdicts_kept": self.kept,
            "verdicts_failed": self.failed,
            "rollbacks": self.rollbacks,
            "skipped": self.skipped,
            "credit_steps": self.budget.credit_steps,
            "credit_seconds": self.budget.credit_seconds,
            "overhead_share": self.budget.overhead_share,
            "history_bytes": self.history.planned_bytes(),
            "budget_bytes": self.history.budget_bytes,
            "probes": self.probes.count,
            "cost": self.cost,
            "elapsed": self.clock.elapsed(),
        }

    # -- phases ------------------------------------------------------------------------------------

    def _settle_warmup(self) -> None:
        """Without warm-up steps, the first batch is already a Full one."""
        if self.machine.at_boundary:
            self.machine.enter(Phase.FULL, self.config.phases.full_steps)

    def _boundary(self) -> None:
        """Let the controller choose until a phase begins that takes batches."""
        while self.machine.at_boundary:
            state = self._state()
            action = self.controller.choose(state)
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

    @property
    def _in_continuous_trial(self) -> bool:
        trial = self._trials.trial
        return trial is not None and trial.continuous and trial.jumps > 1

    def _enter(self, phase: Phase, length: int, reason: str, *, quiet: bool = False) -> None:
        left = self.machine.phase
        self.machine.enter(phase, length)
        if quiet:
            return
        self.events.emit(Event.PHASE_END, step=self.real_steps, phase=left.value)
        self._announce(reason)

    def _announce(self, reason: str) -> None:
        machine = self.machine
        self._trace("%s for %d: %s", machine.phase.value, machine.length, reason)
        self.events.emit(
            Event.PHASE_START,
            step=self.real_steps,
            phase=machine.phase.value,
            length=machine.length,
            reason=reason,
        )

    def _state(self, confidence: float | None = None) -> EngineState:
        straightness = self.history.straightness()
        if confidence is None:
            confidence = min(max(straightness, 0.0), 1.0) if math.isfinite(straightness) else 0.0
        _, rule = self.machine.permitted(Phase.PREDICT) if self.phase is not Phase.PREDICT else (None, None)
        why_not = rule or self._why_not()
        return EngineState(
            step=self.real_steps,
            phase=self.phase,
            consecutive_predicts=self.machine.consecutive_predicts,
            may_predict=why_not is None,
            why_not=why_not,
            confidence=confidence,
            straightness=straightness,
            reach=self.reach.horizon if self.reach is not None else math.nan,
            next_sample=self.reach.next_sample if self.reach is not None else 0,
            trial_steps_left=self._trials.steps_left,
            learning_rate=self.statistics.learning_rate,
            peak_learning_rate=self.statistics.peak_learning_rate,
            momentum_memory=self.adapter.momentum_memory,
            statistics=self.statistics,
            predictor_ready={n: p.ready(self.history) for n, p in self.predictors.items()},
            default_predictor=next(iter(self.predictors)),
            window=self.history.window,
        )

    def _why_not(self) -> str | None:
        if self._trials.trial is not None:
            return None
        if self.real_steps < self.budget.resume_at:
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
        pause = self.budget.resume_at - self.real_steps
        if self.history.active:
            if state.may_predict and self.real_steps - self._awake_since > lead:
                self._idle += 1
                pause = self.budget.pause(self._idle)
                self.budget.resume_at = self.real_steps + pause
            if pause > lead or state.why_not == "the overhead budget is spent":
                self.history.sleep()
        elif pause <= lead and state.why_not != "the overhead budget is spent":
            self.history.wake()
            self._awake_since = self.real_steps

    # -- jumps -------------------------------------------------------------------------------------

    def _predict(self, action: Action) -> None:
        """Propose, check, open a trial and apply; on refusal a Full phase follows."""
        name = action.predictor or next(iter(self.predictors))
        before = None
        opened = False
        if self._trials.trial is None:
            opening = self._trials.open(action, self.real_steps, self.cost, self.predicted_steps)
            opening.predictor = name
            self.history.average(action.averaged)
            opened = True
            self._limiter.measure_weights(self.adapter)
            tentative = self.config.probe.tentative and self.config.phases.predict_mode == "jump"
            if tentative and action.judge == "probe" and not action.continuous:
                before = self._trials.probe(None)
        jump, refusal = self._propose(name, action.horizon)
        if jump is None:
            if opened:
                self._trials.close()
            self._refuse(name, action.horizon, refusal or "refused")
            return
        trial = self._trials.trial
        assert trial is not None
        trial.jumps += 1
        self._idle = 0
        if self.config.phases.predict_mode == "step" and not action.continuous:
            self._enter(Phase.PREDICT, self.config.phases.predict_steps, action.reason)
            self._pending = (jump, self.config.phases.predict_steps, 0)
            return
        jump.apply(self.adapter)
        if before is not None:
            _, worse = self._trials.compare(before)
            if worse is not None:
                self.adapter.restore(trial.snapshot)
                self._trials.close()
                self._refuse(name, action.horizon, worse)
                return
        self._enter(Phase.PREDICT, 0, action.reason, quiet=self._in_continuous_trial)
        self.predicted_steps += max(0.0, jump.horizon)
        self._landed(jump, action.reason, share=1.0, continuous=action.continuous)

    def _propose(self, name: str, horizon: float) -> tuple[Jump | None, str | None]:
        predictor = self.predictors.get(name)
        if predictor is None:
            raise PluginError(
                "the controller asks for a predictor that the engine does not have",
                where="controller",
                got=name,
                expected=f"one of {sorted(self.predictors)}",
                fix="name it in predictor.name, or add it to the controller's portfolio",
            )
        if not predictor.ready(self.history):
            return None, f"predictor {name!r} is not ready"
        try:
            trial = self._trials.trial
            prediction = self._prediction(predictor, horizon, trial is not None and trial.continuous)
            if trial is not None and trial.continuous and trial.first_jump is not None:
                return self._limiter.repeat(prediction, trial.first_jump), None
            jump = self._limiter.limit(prediction, self.adapter)
            if trial is not None:
                trial.first_jump = jump
            return jump, None
        except HybridCoreError as error:
            logger.warning("predictor %r refused: %s", name, error)
            return None, f"predictor {name!r}: {error.what}"

    def _prediction(self, predictor: Predictor, horizon: float, continuous: bool) -> Prediction:
        """The predictor's proposal; measured by probes where it can use them and no step is continuous."""
        measures = isinstance(predictor, MeasuringPredictor)
        linearises = isinstance(predictor, LinearisingPredictor) and "residuals" in self.adapter.capabilities
        if continuous or not len(self.probes) or not (measures or linearises):
            return predictor.predict(self.history, horizon, self.adapter.xp)
        current = self.adapter.read_params()

        def measure(change: Buckets) -> float:
            weights = tuple(w + d for w, d in zip(current, change, strict=True))
            return float(np.mean(self._trials.probe(weights)))

        if linearises and isinstance(predictor, LinearisingPredictor):
            linearise = self._trials.linearise
            return predictor.predict_linearised(self.history, horizon, self.adapter.xp, linearise, measure)
        assert isinstance(predictor, MeasuringPredictor)
        return predictor.predict_with(self.history, horizon, self.adapter.xp, measure)

    def _landed(self, jump: Jump, reason: str, *, share: float, continuous: bool) -> None:
        """After the whole change: optimizer state, statistics, history, events."""
        self.jumps += 1
        if not continuous:
            self.adapter.after_jump(jump.deltas)
            if "batch-statistics" in self.adapter.capabilities:
                self.adapter.refresh_statistics(self.probes.batches)
            self.history.restart()
            self._awake_since = self.real_steps
        trial = self._trials.trial
        if trial is not None:
            trial.predicted += abs(jump.horizon) * share
        self.events.emit(
            Event.JUMP,
            step=self.real_steps,
            predictor=trial.predictor if trial is not None else "",
            horizon=jump.horizon * share,
            confidence=jump.confidence,
            relative=jump.relative * share,
            capped=[g.value for g in jump.capped],
            elapsed=self.clock.elapsed(),
            cost=self.cost,
            reason=reason,
        )

    def _drop_pending(self, reason: str) -> None:
        """End a Predict phase of mode "step" early; a trial of which nothing was applied is no trial."""
        if self._pending is None:
            return
        jump, steps, done = self._pending
        self._pending = None
        if done:
            self._landed(
                jump, f"{done} of {steps} shares applied: {reason}", share=done / steps, continuous=False
            )
            return
        trial = self._trials.trial
        if trial is not None:
            trial.jumps -= 1
            if trial.jumps == 0:
                self._trials.close()

    def _why_stop(self, jump: Jump, steps: int, done: int, loss: float) -> str | None:
        if done >= steps:
            return f"{done} of {steps} shares applied"
        if math.isfinite(loss) and self._trials.trial is not None:
            over = self._trials.over_guard(loss)
            if over is not None:
                return f"early exit after {done} of {steps} predicted steps: {over}"
        if not self.controller.proceed(self._state(confidence=jump.confidence)):
            return f"early exit after {done} of {steps} predicted steps: confidence {jump.confidence:.3f}"
        return None

    def _refuse(self, name: str, horizon: float, reason: str) -> None:
        self.refused += 1
        resume = self.budget.failed(self.real_steps)
        self._trace("jump refused: %s", reason)
        self.events.emit(
            Event.JUMP_REFUSED, step=self.real_steps, predictor=name, horizon=horizon, reason=reason
        )
        self.controller.feedback(
            Outcome(False, name, horizon, 0, 0, math.nan, math.nan, 0.0, 0.0, math.nan, reason)
        )
        self._enter(Phase.FULL, self.config.phases.full_steps, f"{reason}; next try at step {resume}")

    # -- verdicts ----------------------------------------------------------------------------------

    def _advance_trial(self, result: StepResult) -> bool:
        """Count a real step of the open trial; True when it was rolled back."""
        broken = self._trials.guard(result)
        if broken is not None:
            self._fail_trial(broken, None)
            return True
        if self._trials.steps_left == 0:
            return self._judge_trial()
        return False

    def _judge_trial(self) -> bool:
        verdict = self._trials.verdict(self.cost, self.predicted_steps)
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
        self.kept += 1
        self.budget.earn(outcome.credit_steps, outcome.credit_seconds)
        if verdict is None or outcome.credit_steps > 0.0:
            self.budget.succeeded()
        else:
            self.budget.failed(self.real_steps)
        self._tell(outcome)
        return False

    def _fail_trial(self, reason: str, verdict: Verdict | None) -> None:
        trial, origin = self._trials.undo(proven=verdict is not None and math.isfinite(verdict.gain))
        if self.average is not None:
            self.average.restart()
        self._pending = None
        self.failed += 1
        self.rollbacks += 1
        resume = self.budget.failed(self.real_steps)
        self._tell(trial.outcome(kept=False, reason=reason, straightness=math.nan, verdict=verdict))
        self.events.emit(Event.ROLLBACK, step=self.real_steps, to_step=origin.step, reason=reason)
        self._enter(Phase.FULL, self.config.phases.full_steps, f"rolled back; next try at step {resume}")

    def _tell(self, outcome: Outcome) -> None:
        word = "kept" if outcome.kept else "failed"
        self._trace("verdict %s after %d real steps: %s", word, outcome.real_steps, outcome.reason)
        self.events.emit(
            Event.VERDICT,
            step=self.real_steps,
            kept=outcome.kept,
            predictor=outcome.predictor,
            horizon=outcome.horizon,
            jumps=outcome.jumps,
            gain=outcome.gain,
            gain_error=outcome.gain_error,
            credit_steps=outcome.credit_steps,
            credit_seconds=outcome.credit_seconds,
            straightness=outcome.straightness,
            reason=outcome.reason,
        )
        self.controller.feedback(outcome)

    # -- events ------------------------------------------------------------------------------------

    def _on_probe(self, examples: int, loss: float, cost: float) -> None:
        self.cost += cost
        self.events.emit(Event.PROBE, step=self.real_steps, examples=examples, loss=loss, cost=cost)

    def _emit_step(self, record: StepRecord) -> None:
        self.events.emit(
            Event.REAL_STEP,
            step=record.step,
            phase=record.phase.value,
            loss=record.loss,
            grad_norm=record.grad_norm,
            learning_rate=record.learning_rate,
            seconds=record.seconds,
            elapsed=self.clock.elapsed(),
            cost=self.cost,
            backward_passes=self.backward_passes,
            predicted_steps=self.predicted_steps,
        )

    def _trace(self, message: str, *values: object) -> None:
        level = logging.INFO if self.config.metrics.trace else logging.DEBUG
        logger.log(level, "step %d: " + message, self.real_steps, *values)
