"""What goes back with the weights when the engine returns to an earlier good state (F40)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import attrs

from hybridcore.averaging import RunningAverage
from hybridcore.budget import Budget
from hybridcore.counts import Counts
from hybridcore.errors import MemoryBudgetError
from hybridcore.events import Event
from hybridcore.good_states import GoodState
from hybridcore.history import History
from hybridcore.reach import Reach
from hybridcore.reporting import Reporter
from hybridcore.state import Statistics
from hybridcore.trials import TrialKeeper

__all__ = ["Rewind"]


@attrs.frozen(eq=False)
class Rewind:
    """The engine as recovery sees it; keeps the protocol `hybridcore.recovery.Host`.

    Attributes:
        trials: Forget their references.
        history: Starts anew.
        statistics: Go back with the weights.
        reach: Goes back too, where there is one.
        average: Starts anew, where there is one.
        budget: Books the lost steps.
        counts: Counts rollbacks.
        reporter: Hears of them.
        apart: Bytes that are reserved for other things.
        fail_trial: The engine's way to undo an open trial.
        force_full: The engine's way to force a Full block.
        enter_full: The engine's way into a Full phase after a rollback; False where the phase goes on.
    """

    trials: TrialKeeper
    history: History
    statistics: Statistics
    reach: Reach | None
    average: RunningAverage | None
    budget: Budget
    counts: Counts
    reporter: Reporter
    apart: int
    fail_trial: Callable[[str], None]
    force_full: Callable[[int], None]
    enter_full: Callable[[str], bool]

    @property
    def in_trial(self) -> bool:
        """Whether a trial is open."""
        return self.trials.trial is not None

    def reserve(self, nbytes: int) -> None:
        """Keep this much of the memory budget for good states, beside the two snapshots of trials.

        Raises:
            MemoryBudgetError: They do not fit; nothing is reserved then.
        """
        self.trials.reserved = self.apart + nbytes
        try:
            self.history.reserve(self.apart + 2 * nbytes)
        except MemoryBudgetError:
            self.trials.reserved = self.apart
            self.history.reserve(self.apart + nbytes // 2)
            raise

    def notes(self) -> Any:
        """Statistics, reach, and what the run had cost."""
        reach = copy.deepcopy(self.reach.state_dict()) if self.reach is not None else None
        return self.statistics.state_dict(), reach, self.budget.total_steps, self.budget.total_seconds

    def went_back(self, state: GoodState, reason: str) -> bool:
        """Forget what was learned since, tell, and begin a Full phase where possible.

        The lost steps were no use, so the budget books them as spent (F83), whoever lost them.
        """
        statistics, reach, steps, seconds = state.notes[1]
        self.statistics.load_state_dict(statistics)
        if self.reach is not None:
            self.reach.forget_distance(reach)
        self.history.restart()
        self.trials.forget()
        if self.average is not None:
            self.average.restart()
        budget = self.budget
        budget.lose(max(0.0, budget.total_steps - steps), max(0.0, budget.total_seconds - seconds))
        resume = budget.failed(self.counts.real_steps)
        self.counts.rollbacks += 1
        self.reporter.emit(Event.ROLLBACK, to_step=state.step, reason=reason)
        return self.enter_full(f"back to step {state.step}; next try at step {resume}")
