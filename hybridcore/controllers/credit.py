"""Controller `credit`: the path so far proposes how far to go, verdicts decide whether that stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs

from hybridcore.config import between
from hybridcore.protocols import API_VERSION, Action, Outcome, Phase, Rollout
from hybridcore.state import EngineState

__all__ = ["Credit"]


@attrs.frozen(kw_only=True)
class CreditConfig:
    """Table ``[controller.credit]``.

    Attributes:
        window: Real steps of one trial.
        growth: Largest growth of the horizon from one real step to the next.
        least_gain: Jumps happen only where the path supports this much more than the user's own step.
        least_rising: While the learning rate warms up, and for as long again, only where the path supports
            this many of the user's steps.
        probe_every: A verdict by probe every this many trials at most; the gap doubles from one up to it.
        caution: The horizon is divided by this after a failed trial, or one behind the curve.
        recovery: Kept trials after which one such division is taken back.
        boost: With an optimizer that has momentum, the multiple of the reach that is taken where the reach is
            twice ``1 + least_gain`` or more; below, it falls to 1 at ``1 + least_gain``.
        align_up: With an optimizer that normalises its gradients, the horizon may exceed the reach: it
            grows while gradients point along the steps before them by this many standard errors.
        align_down: It shrinks towards the reach where they point back by this many.
        align_growth: Growth per step seen; it shrinks by the square of this.
        align_leak: It shrinks by this per step seen while neither is clear.
        align_reach: Largest multiple of the reach to which it may grow so.
        align_most: Longest horizon to which it may grow so.
        align_floor: The horizon exceeds the reach only where the reach itself is at least this,
        align_trend: or where the reach grows with this power of the steps or more.
        trust: Largest norm of a repetition over the norm of the weights at first, beside
            ``groups.max_relative_repeat``. It doubles with each verdict that proves a gain, up to 1, and is
            halved after a failed trial, or one behind the curve, down to a thousandth of what it was first.
        foresight: Where a dynamics model is configured, each trial tries the horizon, or one `foresight_step`
            times as long or short, whichever promises the lowest training loss at the trial's end.
        foresight_step: See there.
        patience: Verdicts in a row that prove no gain, after which jumps rest; 0 never rests. A gain is
            proven where it is more than its standard error.
        rest: Real steps of such a rest; doubles with each in a row.
    """

    window: int = attrs.field(default=20, validator=between(1))
    growth: float = attrs.field(default=1.15, validator=between(1.0, low_open=True))
    least_gain: float = attrs.field(default=0.5, validator=between(0.0))
    least_rising: float = attrs.field(default=6.0, validator=between(1.0))
    probe_every: int = attrs.field(default=16, validator=between(1))
    caution: float = attrs.field(default=2.0, validator=between(1.0, low_open=True))
    recovery: int = attrs.field(default=16, validator=between(1))
    boost: float = attrs.field(default=1.5, validator=between(1.0))
    align_up: float = attrs.field(default=2.5, validator=between(0.0))
    align_down: float = attrs.field(default=1.5, validator=between(0.0))
    align_growth: float = attrs.field(default=1.1, validator=between(1.0, low_open=True))
    align_leak: float = attrs.field(default=1.005, validator=between(1.0))
    align_reach: float = attrs.field(default=3.0, validator=between(0.0, low_open=True))
    align_most: float = attrs.field(default=8.0, validator=between(1.0))
    align_floor: float = attrs.field(default=1.5, validator=between(0.0))
    align_trend: float = attrs.field(default=0.25, validator=between(0.0))
    patience: int = attrs.field(default=2, validator=between(0))
    rest: int = attrs.field(default=100, validator=between(1))
    trust: float = attrs.field(default=0.02, validator=between(0.0, low_open=True))
    foresight: bool = False
    foresight_step: float = attrs.field(default=1.5, validator=between(1.0))


_FEWEST = 5
"""Cosines without which alignment says nothing."""


def _fading(state: EngineState) -> bool:
    """Whether a schedule has begun to anneal, which jumps would undo."""
    return state.learning_rate < 0.5 * state.peak_learning_rate


def _standardised(cosines: tuple[float, ...]) -> float:
    """Their mean in standard errors."""
    mean = math.fsum(cosines) / len(cosines)
    variance = math.fsum((c - mean) ** 2 for c in cosines) / (len(cosines) - 1)
    return mean / max(math.sqrt(variance / len(cosines)), 1e-12)


class Credit:
    """Every real update is followed by a predicted repetition worth h - 1 more steps.

    h is the reach of the path (`hybridcore.reach.Reach`), raised by at most `growth` a step, divided by
    `caution` after a failed trial, and never below one: the user's own step is the floor (F84). Trials of
    `window` real steps are guarded, and every now and then judged by probe.

    Where the optimizer normalises its gradients, their size does not shorten the reach when steps get too
    long, and the reach is only a guess up to a factor, at first too short a one. There the alignment of
    gradients with the steps before them (`hybridcore.alignment.Alignment`) may lift h above the reach: it
    grows while they agree, and falls back to the reach where they do not. Gradients agree for a while at any
    rate, so that is not enough: the reach must be above the floor, or grow as it does on a straight path.

    A path walked at the low rates of a warm-up says little about steps at the rate that it leads to, which
    is the user's own way to longer steps. Jumps wait for its end, and for as long again, unless the path
    supports far more steps than a warm-up adds.

    What has stopped to pay is left alone: after `patience` verdicts in a row without a proven gain, and
    without a clear fall of the loss, jumps rest. A model that has learned what its data tell goes on
    overfitting, and would only do so sooner; without a clear gap between held-out and training losses, jumps
    go on where gradients that grow shorten the reach by themselves, that is where the optimizer does not
    normalise them.

    Example:
        >>> Credit().config.window
        20
    """

    name: ClassVar[str] = "credit"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"last-update", "reach", "alignment", "window-means"})
    Config: ClassVar[type] = CreditConfig

    def __init__(self, config: CreditConfig | None = None) -> None:
        self.config = config or CreditConfig()
        self._h = 1.0
        self._step = 0
        self._divisor = 1.0
        self._kept = 0
        self._trials = 0
        self._next_probe = 1
        self._gap = 1
        self._waits = 0
        self._outlook = 1.0
        self._dry = self._rests = self._resumes = 0
        self._aligned = 1.0
        self._trust = self.config.trust
        self._since = self._seen = 0
        self._climbing = self._normalised = False
        self._averaged = True

    def choose(self, state: EngineState) -> Action:
        """Repeat the last update h - 1 times, or rest until the next sample of the reach."""
        c = self.config
        if state.phase is Phase.PREDICT:
            return Action(Phase.CORRECT, 1, "Correct follows Predict", observe=True, averaged=self._averaged)
        opening = state.trial_steps_left == 0
        reach = state.reach if math.isfinite(state.reach) else 1.0
        if opening and c.foresight and state.forecast is not None:
            self._outlook = self._best_outlook(state, state.forecast)
        if opening and state.step < self._resumes:
            self._h, self._step = 1.0, state.step
            return self._rest(state, f"no gain was proven; jumps rest until step {self._resumes}")
        boosted = self._boosted(reach, state)
        supported = boosted / self._divisor
        self._normalised = state.normalised
        if state.normalised:
            supported = max(supported, self._follow(state, reach))
        target = self._outlook * supported
        allowed = self._h * c.growth ** min(max(1, state.step - self._step), 100)
        self._h = max(1.0, min(target, allowed))
        self._step = state.step
        too_few = self._h < 1.0 + c.least_gain or (state.statistics.rising and target < c.least_rising)
        if too_few or _fading(state):
            return self._rest(state, self._too_short(state, self._found(target, reach)))
        if not state.may_predict:
            reason = state.why_not or "Predict is not allowed"
            if state.trial_steps_left or state.consecutive_predicts:  # the cap on Predict phases in a row
                return Action(Phase.FULL, 1, reason, observe=True)
            return self._rest(state, reason)
        name = state.default_predictor
        if not state.predictor_ready.get(name, False):
            # Right after a rest one real step makes it ready; one that stays unready is left alone for longer
            # and longer, so that it costs nothing.
            self._waits += 1
            length = 1 if self._waits <= 2 else min(2 ** (self._waits // 2), 256)
            awake = self._waits <= 2 or self._waits % 2 == 0
            return Action(
                Phase.FULL, length if not awake else 1, f"predictor {name!r} is not ready", observe=awake
            )
        self._waits = 0
        ahead = math.ceil(2 * state.window / c.window)  # trials in which two windows close
        self._averaged = self._trials + 1 + ahead >= self._next_probe
        probe = opening and self._trials + 1 >= self._next_probe
        if probe and not state.curve_known:
            reason = "a verdict needs to know how fast the loss falls without jumps"
            return Action(Phase.FULL, 2, reason, observe=True, averaged=True)
        return Action(
            Phase.PREDICT,
            0,
            f"{self._found(target, reach)}, going {self._h:.3g}",
            predictor=name,
            horizon=max(self._h - 1.0, 0.01),
            settle=c.window,
            judge="probe" if probe else "guard",
            continuous=True,
            averaged=self._averaged,
            longest=self._trust,
        )

    def _found(self, target: float, reach: float) -> str:
        lifted = f", its reach {reach:.3g}" if target > reach else ""
        return f"the path supports {target:.3g} steps{lifted}"

    def _too_short(self, state: EngineState, found: str) -> str:
        if _fading(state):
            return "the learning rate is in its decay"
        return found + (", too few after a warm-up" if state.statistics.rising else "")

    def _boosted(self, reach: float, state: EngineState) -> float:
        """The reach, longer where momentum makes it too careful a guess and it is far from the floor."""
        c = self.config
        if state.momentum_memory <= 1.0:
            return reach
        worth = 1.0 + c.least_gain
        return reach * (1.0 + (c.boost - 1.0) * min(max(reach / worth - 1.0, 0.0), 1.0))

    def _follow(self, state: EngineState, reach: float) -> float:
        """The horizon that alignment supports: longer or shorter by every new cosine that is clear."""
        c = self.config
        fresh = state.aligned_steps - self._seen
        self._seen = state.aligned_steps
        usable = min(state.aligned_steps - self._since, len(state.alignments))
        if fresh > 0 and usable >= _FEWEST:
            z = _standardised(state.alignments[-usable:])
            self._climbing = z > c.align_up
            if self._climbing:
                self._aligned *= c.align_growth**fresh
            elif z < -c.align_down:
                self._aligned /= c.align_growth**2
                self._since = state.aligned_steps
            else:
                self._aligned /= c.align_leak**fresh
        self._aligned = max(min(self._aligned, c.align_reach * reach, c.align_most), 1.0)
        straight = reach >= c.align_floor or state.reach_growth >= c.align_trend
        return self._aligned if straight else 1.0

    def _best_outlook(self, state: EngineState, forecast: Callable[[Action, int], Rollout]) -> float:
        """Ratio of the horizon with the lowest forecast, plus one deviation of what the model ignores.

        A model without any confidence has no say: its forecasts are those of an untrained one.
        """
        c = self.config

        def promised(ratio: float) -> float:
            horizon = max(self._h * ratio - 1.0, 0.0)
            action = Action(Phase.PREDICT, 0, "", predictor=state.default_predictor, horizon=horizon)
            rollout = forecast(action, c.window)
            if rollout.confidence <= 0.0:
                return math.nan
            return float(rollout.mean[-1]) + math.sqrt(max(float(rollout.epistemic[-1]), 0.0))

        promises = {ratio: promised(ratio) for ratio in (1.0, c.foresight_step, 1.0 / c.foresight_step)}
        if not all(map(math.isfinite, promises.values())):
            return 1.0
        return min(promises, key=promises.__getitem__)

    def _rest(self, state: EngineState, reason: str) -> Action:
        wait = state.next_sample - state.step - 2
        climbing = self._climbing and state.may_predict and state.step >= self._resumes and not _fading(state)
        if wait > 0 and state.trial_steps_left == 0 and not climbing:
            return Action(Phase.FULL, wait, reason, observe=False)
        near = self._h >= 1.0 + 0.5 * self.config.least_gain
        return Action(Phase.FULL, 2, reason, averaged=near, observe=True)

    def proceed(self, state: EngineState) -> bool:
        """Continuous jumps are whole."""
        return True

    def feedback(self, outcome: Outcome) -> None:
        """Divide the horizon after a failure; take a division back after a row of kept trials."""
        c = self.config
        self._trials += 1
        if not outcome.kept and outcome.jumps == 0:
            return
        if not outcome.kept or outcome.behind_steps > 0.0:
            self._divisor *= c.caution
            self._h = max(1.0, self._h / c.caution)
            self._trust = max(self._trust / 2.0, c.trust / 1000.0)
            self._aligned = max(1.0, self._aligned / c.caution)
            self._since, self._climbing = self._seen, False
            self._kept = 0
        if not outcome.kept:
            return
        self._kept += 1
        if self._divisor > 1.0 and self._kept >= c.recovery:
            self._divisor /= c.caution
            self._kept = 0
        if math.isfinite(outcome.gain):
            self._gap = min(2 * self._gap, c.probe_every)
            self._weigh(outcome)
            self._next_probe = self._trials + self._gap

    def _weigh(self, outcome: Outcome) -> None:
        """Look again at once after a verdict that proves no gain; rest after several in a row."""
        if outcome.gain > outcome.gain_error:
            self._trust = min(2.0 * self._trust, 1.0)
            self._dry = self._rests = 0
            return
        if outcome.falling or not (outcome.overfitted or self._normalised):
            return  # there is still something to learn, and too little of it to tell who taught it
        self._gap = 1
        if outcome.behind_steps > 0.0:
            return  # the horizon was too long, and is shorter now
        self._dry += 1
        if self.config.patience and self._dry >= self.config.patience:
            self._resumes = self._step + self.config.rest * 2 ** min(self._rests, 20)
            self._rests += 1
            self._dry = self.config.patience - 1  # the next verdict without a gain is enough

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {k: v for k, v in vars(self).items() if k != "config"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for key, value in state.items():
            setattr(self, key, value)
