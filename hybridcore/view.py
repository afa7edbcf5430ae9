"""What a controller sees of the engine before it chooses."""

from __future__ import annotations

import math

import attrs

from hybridcore.budget import OVERSPENT, Budget
from hybridcore.counts import Counts
from hybridcore.history import History
from hybridcore.leaps import Leaps
from hybridcore.participants import Participants
from hybridcore.phases import PhaseMachine
from hybridcore.probes import ProbeSet
from hybridcore.protocols import Adapter, Phase
from hybridcore.reach import Reach
from hybridcore.restraint import Restraint
from hybridcore.state import EngineState, Statistics
from hybridcore.trials import TrialKeeper

__all__ = ["View"]


@attrs.define(eq=False)
class View:
    """Puts an `EngineState` together.

    Attributes:
        adapter: Gives momentum and moments.
        participants: Predictors that may be ready, and the dynamics model.
        machine: Gives the phase and its rules.
        statistics: Losses, rates and features.
        history: Gives the straightness.
        reach: Gives the horizon, where there is one.
        probes: Without them nothing is predicted.
        trials: The open trial.
        budget: What may be spent.
        counts: Gives the step.
        leaps: Know who is ready.
        restraint: Raises the confidence that predictions need.
        normalised: Whether the optimizer keeps a second moment; None before it was asked.
    """

    adapter: Adapter
    participants: Participants
    machine: PhaseMachine
    statistics: Statistics
    history: History
    reach: Reach | None
    probes: ProbeSet
    trials: TrialKeeper
    budget: Budget
    counts: Counts
    leaps: Leaps
    restraint: Restraint
    normalised: bool | None = None

    def state(self, confidence: float | None = None) -> EngineState:
        """The state now.

        Args:
            confidence: That of a pending change; worked out from the path and the forecast if None.
        """
        straightness, foresight = self.history.straightness(), self.participants.foresight
        if confidence is None:
            confidence = min(max(straightness, 0.0), 1.0) if math.isfinite(straightness) else 0.0
            if foresight is not None and confidence > 0.0:
                name, horizon = self.participants.default_predictor, float(self.history.window)
                confidence = min(confidence, foresight.confidence(name, horizon))
                foresight = self.participants.foresight  # one that failed just now is gone
        phase, step = self.machine.phase, self.counts.real_steps
        _, rule = self.machine.permitted(Phase.PREDICT) if phase is not Phase.PREDICT else (None, None)
        why_not = rule or self._why_not()
        return EngineState(
            step=step,
            phase=phase,
            consecutive_predicts=self.machine.consecutive_predicts,
            may_predict=why_not is None,
            why_not=why_not,
            confidence=confidence,
            straightness=straightness,
            reach=self.reach.horizon if self.reach is not None else math.nan,
            reach_growth=self.reach.growth if self.reach is not None else math.nan,
            alignments=self.reach.alignment.samples if self.reach is not None else (),
            aligned_steps=self.reach.alignment.count if self.reach is not None else 0,
            next_sample=self.reach.next_sample if self.reach is not None else 0,
            trial_steps_left=self.trials.steps_left,
            curve_known=self.trials.knows_curve(self.counts.cost),
            learning_rate=self.statistics.learning_rate,
            peak_learning_rate=self.statistics.peak_learning_rate,
            momentum_memory=self.adapter.momentum_memory,
            normalised=self.is_normalised(),
            forecast=foresight.forecast if foresight is not None else None,
            statistics=self.statistics,
            predictor_ready={n: self.leaps.ready(n) for n in list(self.participants.predictors)},
            default_predictor=self.participants.default_predictor,
            window=self.history.window,
            raised_threshold=self.restraint.threshold(step),
        )

    def is_normalised(self) -> bool:
        """Whether the optimizer keeps a second moment; asked once, since the answer costs a pass."""
        if self.normalised is None and self.counts.real_steps > self.counts.skipped:
            self.normalised = self.adapter.moments().get("v_std", 0.0) > 0.0
        return bool(self.normalised)

    def _why_not(self) -> str | None:
        """Why no trial may be opened now."""
        if self.trials.trial is not None:
            return None
        if self.counts.real_steps < self.budget.resume_at:
            return f"paused until step {self.budget.resume_at}"
        if not self.probes.complete:
            return "no probe examples yet"
        steps, seconds = self.trials.expected_cost(self.history.window)
        if not self.budget.allows(steps, seconds):
            return OVERSPENT
        return None
