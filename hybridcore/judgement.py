"""The end of a trial: kept or rolled back, booked, told and fed back."""

from __future__ import annotations

import math

import attrs

from hybridcore.averaging import RunningAverage
from hybridcore.budget import Budget
from hybridcore.config import PhasesConfig
from hybridcore.correction.keeper import CorrectionKeeper
from hybridcore.counts import Counts
from hybridcore.events import Event
from hybridcore.history import History
from hybridcore.leaps import Leaps
from hybridcore.participants import Participants
from hybridcore.protocols import Adapter, Outcome, Phase, StepResult
from hybridcore.recovery import Recovery
from hybridcore.reporting import Reporter
from hybridcore.state import Statistics
from hybridcore.transitions import Transitions
from hybridcore.trials import TrialKeeper
from hybridcore.verdict import Verdict

__all__ = ["Judge"]


@attrs.frozen(eq=False)
class Judge:
    """Follows the open trial and ends it.

    Attributes:
        adapter: The model.
        config: Lengths of phases.
        trials: The open trial.
        statistics: Seconds per step.
        history: Gives the straightness.
        average: Starts anew after a rollback, where there is one.
        budget: Books credit and losses.
        counts: Counts verdicts.
        reporter: Hears of them.
        corrections: Measure what became of the change.
        leaps: Hold a pending change, which a rollback drops.
        recovery: Hears of failed trials.
        participants: The controller learns from outcomes.
        transitions: The way into the Full phase after a rollback.
    """

    adapter: Adapter
    config: PhasesConfig
    trials: TrialKeeper
    statistics: Statistics
    history: History
    average: RunningAverage | None
    budget: Budget
    counts: Counts
    reporter: Reporter
    corrections: CorrectionKeeper
    leaps: Leaps
    recovery: Recovery
    participants: Participants
    transitions: Transitions

    def advance(self, result: StepResult) -> bool:
        """Count a real step of the open trial; True when it was rolled back."""
        broken = self.trials.guard(result)
        if broken is not None:
            self.fail(broken)
            return True
        self.corrections.settle(may_act=self.trials.steps_left > 0)
        if self.trials.steps_left == 0:
            return self._judge()
        return False

    def conclude(self) -> None:
        """End the open trial, where there is one, with what is known."""
        trial = self.trials.trial
        if trial is not None and trial.continuous and trial.real_steps == 0:
            self._take_back()
        elif trial is not None:
            self._judge()

    def fail(self, reason: str, verdict: Verdict | None = None) -> None:
        """Roll the open trial back."""
        trial, origin = self.trials.undo(proven=verdict is not None and math.isfinite(verdict.gain))
        if self.average is not None:
            self.average.restart()
        self.leaps.pending = None
        self.corrections.failed()
        if self.participants.foresight is not None:
            self.participants.foresight.interrupt()
        self.recovery.trial_failed(origin.step)
        self.counts.failed += 1
        self.counts.rollbacks += 1
        resume = self.budget.failed(self.counts.real_steps)
        self._tell(trial.outcome(kept=False, reason=reason, straightness=math.nan, verdict=verdict))
        self.reporter.emit(Event.ROLLBACK, to_step=origin.step, reason=reason)
        reason = f"rolled back to step {origin.step}; next try at step {resume}"
        self.transitions.enter(Phase.FULL, self.config.full_steps, reason)

    def _take_back(self) -> None:
        """Undo a repetition that no real step has followed: nothing can be said of it."""
        trial = self.trials.trial
        assert trial is not None
        self.adapter.restore(trial.snapshot)
        self.trials.close()
        self.corrections.failed()
        self.counts.predicted_steps -= trial.predicted
        self.counts.jumps -= trial.jumps
        reason = "the run is over before the jump can be judged"
        self.reporter.emit(Event.ROLLBACK, to_step=trial.step, reason=reason)

    def _judge(self) -> bool:
        """Pass the verdict; True when it rolled the trial back."""
        verdict = self.trials.verdict(self.counts.cost, self.counts.predicted_steps)
        if verdict is not None and not verdict.kept:
            self.fail(verdict.reason, verdict)
            return True
        trial = self.trials.close()
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

    def _tell(self, outcome: Outcome) -> None:
        self.reporter.verdict(outcome)
        self.participants.feedback(outcome)
