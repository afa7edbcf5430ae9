"""When the history sleeps, so that steps cost nothing extra while nothing can be predicted (F83)."""

from __future__ import annotations

import attrs

from hybridcore.budget import OVERSPENT, Budget
from hybridcore.counts import Counts
from hybridcore.history import History
from hybridcore.phases import PhaseMachine
from hybridcore.protocols import Action, Phase
from hybridcore.state import EngineState
from hybridcore.trials import TrialKeeper

__all__ = ["Rest"]


@attrs.define(eq=False)
class Rest:
    """Puts the history to sleep and wakes it early enough to be ready again.

    Attributes:
        history: What sleeps.
        machine: Gives the phase.
        trials: Nothing sleeps in an open trial.
        budget: Says when the next trial may begin.
        counts: Gives the step.
        lead: Real steps that the history needs to be ready.
        awake_since: Real step since which nothing was predicted although it could have been.
        idle: Pauses in a row that came of that.
    """

    history: History
    machine: PhaseMachine
    trials: TrialKeeper
    budget: Budget
    counts: Counts
    lead: int
    awake_since: int = 0
    idle: int = 0

    def proposed(self) -> None:
        """A change was proposed."""
        self.idle = 0

    def landed(self) -> None:
        """A change was applied whole."""
        self.awake_since = self.counts.real_steps

    def after(self, state: EngineState, action: Action) -> None:
        """Sleep or wake as the action that was just taken asks, or, where it leaves that open, by the budget.

        Args:
            state: What the controller saw.
            action: What it chose.
        """
        if action.observe is not None:
            self.history.average(action.averaged)
            if action.observe and not self.history.active:
                self.history.wake()
            elif self.history.active and not action.observe:
                self.history.sleep(keep_buffers=True)
            return
        if self.machine.phase is not Phase.FULL or self.trials.trial is not None:
            return
        pause = self.budget.resume_at - self.counts.real_steps
        if self.history.active:
            if state.may_predict and self.counts.real_steps - self.awake_since > self.lead:
                self.idle += 1
                pause = self.budget.pause(self.idle)
                self.budget.resume_at = self.counts.real_steps + pause
            if pause > self.lead or state.why_not == OVERSPENT:
                self.history.sleep()
        elif pause <= self.lead and state.why_not != OVERSPENT:
            self.history.wake()
            self.awake_since = self.counts.real_steps
