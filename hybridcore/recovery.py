"""From a signal to an action, and the eight actions themselves (F37-F43).

`Recovery` is what the engine talks to. It owns the monitors, the policy, the good states and what holds
predictions back; it asks the engine, as its `Host`, for what only the engine can do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import numpy as np

from hybridcore.autotune import Autotune
from hybridcore.config import HybridConfig
from hybridcore.containment import Containment
from hybridcore.divergence import DivergenceWatch
from hybridcore.errors import DeltaError, DivergenceError, HybridCoreError, RecoveryAction
from hybridcore.good_states import GoodState, GoodStates
from hybridcore.policy import Policy
from hybridcore.protocols import Adapter, Predictor, Signal, SignalLevel, StepRecord
from hybridcore.rates import RateControl
from hybridcore.reporting import Reporter, describe
from hybridcore.restraint import Restraint

__all__ = ["Host", "Recovery"]

logger = logging.getLogger("hybridcore")

_OWNER = "recovery"

_SAME = 0.01
"""Relative difference below which a score is that of the time before."""


class Host(Protocol):
    """What recovery asks of the engine."""

    @property
    def in_trial(self) -> bool:
        """Whether a trial is open."""
        ...

    def reserve(self, nbytes: int) -> None:
        """Keep this much of the memory budget for good states.

        Raises:
            MemoryBudgetError: They do not fit.
        """
        ...

    def notes(self) -> Any:
        """What of the engine's own state must go back with the weights."""
        ...

    def went_back(self, state: GoodState, reason: str) -> bool:
        """The model has an earlier state: forget what was learned since; whether a new phase has begun."""
        ...

    def fail_trial(self, reason: str) -> None:
        """Undo the open trial."""
        ...

    def force_full(self, steps: int) -> None:
        """Make the next steps Full."""
        ...


class Recovery:
    """Checks every real step and does what the policy says about what is found.

    Args:
        adapter: The model.
        config: Tables ``divergence``, ``recovery`` and ``autotune``.
        watch: The monitors.
        predictors: By registry name.
        rates: Changes the learning rate.
        reporter: Hears of signals and actions.
        host: The engine.
        containment: Calls the predictors.

    Attributes:
        actions: How often each action was taken.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: HybridConfig,
        watch: DivergenceWatch,
        predictors: Mapping[str, Predictor],
        rates: RateControl,
        reporter: Reporter,
        host: Host,
        containment: Containment | None = None,
    ) -> None:
        self._containment = containment if containment is not None else Containment()
        self._adapter, self._config = adapter, config.recovery
        self._predictors, self._rates = predictors, rates
        self._reporter, self._host = reporter, host
        self.watch = watch
        self.policy = Policy(config.recovery)
        self.restraint = Restraint(config.recovery)
        self.states = GoodStates(adapter, config.recovery, host.reserve)
        self.autotune = Autotune(adapter, config.autotune, watch, rates, reporter)
        self.actions: dict[str, int] = {action.value: 0 for action in RecoveryAction}
        self._seeds = np.random.SeedSequence([config.run.seed, 1])
        self._begun = False
        self._record: StepRecord | None = None
        self._in_a_row = 0
        self._relax_at = 0
        self._blamed: tuple[str, float, float] | None = None
        self._blamed_at = self._passes_by = 0

    # -- the engine calls ------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Keep the state before the first step of this process; later calls do nothing."""
        if self._begun:
            return
        self._begun = True
        if self.watch.monitors:
            self.states.begin(step, self._rates.applied, self._notes)
        else:
            self.states.enabled = False  # nobody could ever ask for one

    def observe(self, record: StepRecord) -> None:
        """Show a real step, also a skipped one, to the monitors."""
        self._record = record
        self.watch.observe(record)

    def review(self) -> bool:
        """Check the latest step and act.

        Returns:
            Whether the state was put back or the phase was changed, so that the step ends no phase.

        Raises:
            DivergenceError: Nothing helps; the last good state has been put back.
        """
        record = self._record
        assert record is not None
        checks = self.watch.checks
        signals = self.watch.check(record)
        interrupted = self._answer(signals, record) if signals else False
        if self.watch.checks == checks:
            # Trials in a row leave single steps between them, and few of those fall on a check.
            return interrupted if signals else self._keep(record)
        if not signals:
            interrupted = self._all_well(record)
        self.autotune.after_check(record.step, self._host.in_trial)
        return interrupted

    def trial_failed(self, origin: int) -> None:
        """A trial was undone, back to a real step: what was done since is no news, and no good state."""
        self.states.undone(origin)
        if self._record is not None:
            self.watch.dismiss(self._record)

    def finish(self) -> None:
        """Check what is left since the last check; a state that diverged is not left behind.

        Raises:
            DivergenceError: As in `review`.
        """
        signals = self.watch.finish(self._record)
        if signals and self._record is not None:
            self._answer(signals, self._record)

    def refused(self, name: str, error: HybridCoreError) -> None:
        """A predictor's proposal was refused with an error; what proposes no numbers is reset (F42).

        Other errors, such as too short a history, say nothing against what it has learned.
        """
        if isinstance(error, DeltaError) and name in self._predictors:
            self._reset([name])
            self._report(RecoveryAction.RESET_PREDICTOR, "proposal", error.what)

    def summary(self) -> dict[str, Any]:
        """Counts for the run's summary."""
        return {
            "divergences": self.watch.divergences,
            "checks": self.watch.checks,
            "health": self.watch.health,
            "learning_rate_factor": self._rates.applied,
            "recovery_actions": {name: count for name, count in self.actions.items() if count},
        }

    # -- good times ------------------------------------------------------------------------------------

    def _all_well(self, record: StepRecord) -> bool:
        step = record.step
        self.states.trust(step)
        if step - self.policy.latest > self._config.forget_after:
            self._in_a_row = 0
            if self._rates.factor(_OWNER) < 1.0 and step >= self._relax_at:
                self._relax(step)
        return self._keep(record)

    def _keep(self, record: StepRecord) -> bool:
        """Take a candidate where one is due and no trial is open."""
        step = record.step
        due = self.states.due and step >= self.states.next_at and not self._host.in_trial
        if due and not self.states.take(step, self._rates.applied, self._notes):
            broken = Signal(SignalLevel.CRITICAL, "non-finite", float("nan"), float("inf"))
            return self._answer([broken], record)
        return False

    def _relax(self, step: int) -> None:
        factor = min(1.0, self._rates.factor(_OWNER) / self._config.learning_rate_factor)
        self._rates.set(_OWNER, factor)
        self._relax_at = step + self._config.forget_after
        self._reporter.trace("recovery: learning rate back to %.3g of its own", factor)

    def _notes(self) -> tuple[Any, Any]:
        return self.watch.mark(), self._host.notes()

    # -- bad times -------------------------------------------------------------------------------------

    def _answer(self, signals: list[Signal], record: StepRecord) -> bool:
        """Report all signals, act on the worst."""
        for signal in signals:
            self._reporter.signal(signal)
        worst = signals[0]
        if worst.level > SignalLevel.CAUTION:
            self.states.doubt(record.step)
        if all(self._its_own(signal, record.step) for signal in signals if signal.level is worst.level):
            return self._let_pass(worst, record.step)
        action = self.policy.action(worst, record.step)
        if worst.level is SignalLevel.CAUTION and action is RecoveryAction.CONTINUE:
            return False
        return self._act(action, worst, record)

    def _its_own(self, signal: Signal, step: int) -> bool:
        """Whether the run does again what a batch was blamed for: the same signal after going back.

        On full batches going back to the same state with the same rate leads to the same losses, and a spike
        that the user's optimizer makes by itself would be undone for ever, or cost the learning rate.
        """
        blamed, c = self._blamed, self._config
        if blamed is None or self._host.in_trial or signal.level is not SignalLevel.CRITICAL:
            return False
        name, limit, value = blamed
        if (signal.name, signal.limit) != (name, limit):
            return False
        if self._passes_by:
            return step < self._passes_by
        same = math.isclose(signal.value, value, rel_tol=_SAME)
        if same and step - self._blamed_at <= c.forget_after:
            self._passes_by = step + c.full_steps
        return self._passes_by > 0

    def _let_pass(self, signal: Signal, step: int) -> bool:
        """No predictions while a rise has time to come down by itself; what lasts longer is answered."""
        left = self._passes_by - step
        reason = f"{describe(signal)}; no batch is to blame, and it has {left} steps to pass"
        self._report(RecoveryAction.FORCE_FULL, signal.name, reason)
        self._host.force_full(left)
        return True

    def _act(self, action: RecoveryAction, signal: Signal, record: StepRecord) -> bool:
        step, c = record.step, self._config
        reason = describe(signal)
        if action is RecoveryAction.ROLLBACK:
            return self._roll_back(signal, reason, step, scale=True)
        if action is RecoveryAction.SKIP_BATCH:
            if record.skipped and self.states.weights_are_finite():
                self._report(action, signal.name, f"{reason}; the weights are unchanged")
                return False
            return self._roll_back(signal, reason, step, scale=False)
        if action is RecoveryAction.ABORT:
            self._abort(signal, reason, step)
        if action is RecoveryAction.REDUCE_RATIO:
            self.restraint.reduce(step)
            reason += f"; horizons times {self.restraint.ratio(step):.3g}"
        elif action is RecoveryAction.RAISE_THRESHOLD:
            self.restraint.demand(step)
            reason += f"; confidence threshold up by {self.restraint.threshold(step):.3g}"
        elif action is RecoveryAction.RESET_PREDICTOR:
            self._reset(self._predictors)
        elif action is RecoveryAction.FORCE_FULL:
            reason += f"; {c.full_steps} Full steps"
        self._report(action, signal.name, reason)
        if action is RecoveryAction.FORCE_FULL:
            self._host.force_full(c.full_steps)
            return True
        return False

    def _roll_back(self, signal: Signal, reason: str, step: int, *, scale: bool) -> bool:
        """Undo an open trial, else go back to the proven state; abort where that did not help (F40, F43)."""
        action = RecoveryAction.ROLLBACK if scale else RecoveryAction.SKIP_BATCH
        if self._host.in_trial:
            self._report(action, signal.name, f"{reason}; the open trial is undone")
            self._host.fail_trial(reason)
            return True
        state = self.states.proven
        if state is None or self._in_a_row >= self._config.max_rollbacks:
            self._abort(signal, reason, step)
        self._in_a_row += 1
        blames = not scale and math.isfinite(signal.value)
        self._blamed = (signal.name, signal.limit, signal.value) if blames else None
        self._blamed_at, self._passes_by = step, 0
        begun = self._put_back(state, reason)
        rate = self._rates.factor(_OWNER)
        if scale and self._rates.available:
            rate *= self._config.learning_rate_factor
            self._rates.set(_OWNER, rate)
        self._relax_at = step + self._config.forget_after
        self._report(
            action, signal.name, f"{reason}; back to step {state.step}, learning rate times {rate:.3g}"
        )
        return begun

    def _put_back(self, state: GoodState, reason: str) -> bool:
        self._adapter.restore(state.snapshot)
        self._adapter.synchronize()
        self._rates.restored(state.rate)
        self.watch.rewind(state.notes[0])
        self.states.candidate = None
        return self._host.went_back(state, reason)

    def _abort(self, signal: Signal, reason: str, step: int) -> NoReturn:
        state = self.states.proven
        if self._host.in_trial:
            self._host.fail_trial(reason)
        if state is not None:
            self._put_back(state, reason)
        held = "as it was left" if state is None else f"of step {state.step}, the last good one"
        self._report(RecoveryAction.ABORT, signal.name, reason)
        raise DivergenceError(
            f"the run diverged: {reason}",
            where=f"step {step}",
            got=f"{self._in_a_row} rollbacks that did not help" if self._in_a_row else None,
            fix=f"the model has the state {held}; save it, then lower the learning rate, clip gradients, or "
            "look at the data of these steps",
        )

    def _reset(self, names: Any) -> None:
        for name in list(names):
            stream = np.random.default_rng(self._seeds.spawn(1)[0])
            reset, layout = self._predictors[name].reset, self._adapter.layout
            self._containment.call("predictor", name, "reset", reset, layout, stream, otherwise=None)

    def _report(self, action: RecoveryAction, cause: str, reason: str) -> None:
        self.actions[action.value] += 1
        if action is not RecoveryAction.CONTINUE:
            logger.warning("step %d: %s: %s", self._step, action.value, reason)
        self._reporter.recovery(action.value, cause, reason)

    @property
    def _step(self) -> int:
        return self._record.step if self._record is not None else 0

    # -- state -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State, the good states included."""
        return {
            "watch": self.watch.state_dict(),
            "policy": self.policy.state_dict(),
            "restraint": self.restraint.state_dict(),
            "rates": self._rates.state_dict(),
            "autotune": self.autotune.state_dict(),
            "actions": dict(self.actions),
            "resets": self._seeds.n_children_spawned,
            "rollbacks": [self._in_a_row, self._relax_at],
            "blamed": [self._blamed, self._blamed_at, self._passes_by],
            "begun": self._begun,
            "record": self._record,
            "states": self.states.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.watch.load_state_dict(state["watch"])
        self.policy.load_state_dict(state["policy"])
        self.restraint.load_state_dict(state["restraint"])
        self._rates.load_state_dict(state["rates"])
        self.autotune.load_state_dict(state["autotune"])
        self.actions = dict(state["actions"])
        self._seeds = np.random.SeedSequence(self._seeds.entropy, n_children_spawned=int(state["resets"]))
        self._in_a_row, self._relax_at = map(int, state["rollbacks"])
        blamed, *steps = state["blamed"]
        self._blamed = tuple(blamed) if blamed is not None else None
        self._blamed_at, self._passes_by = map(int, steps)
        self._begun, self._record = bool(state["begun"]), state["record"]
        self.states.load_state_dict(state["states"])
