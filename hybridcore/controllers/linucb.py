"""Controller `linucb`: a contextual bandit learns which predictor pays how far ahead (F45)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import between, choice
from hybridcore.protocols import API_VERSION, Action, Outcome, Phase
from hybridcore.state import EngineState

__all__ = ["Arm", "LinUcb", "context"]

CONTEXT_SIZE = 6


def _distinct(instance: Any, attribute: Any, value: tuple[Any, ...]) -> None:
    if len(set(value)) != len(value):
        raise ValueError(f"duplicates: got {value!r}, expected distinct entries")


def _multipliers(instance: Any, attribute: Any, value: tuple[float, ...]) -> None:
    if not value or min(value) <= 0.0:
        raise ValueError(f"out of range: got {value!r}, expected one or more numbers in (0, inf)")
    _distinct(instance, attribute, value)


@attrs.frozen(kw_only=True)
class LinUcbConfig:
    """Table ``[controller.linucb]``.

    Attributes:
        portfolio: Registry names of the predictors among which it chooses; empty for the one that
            ``predictor.name`` names alone.
        multipliers: Horizons among which it chooses, in history windows.
        alpha: Width of the confidence bound; larger explores more.
        ridge: Regularisation of each arm's regression.
        discount: Weight of past rewards is multiplied by this at each new one; 1 never forgets.
        least_reward: Jumps happen only where an arm may earn this much per real step; covers the probes.
        reward: ``"steps"`` counts credit per real step of a trial; ``"seconds"`` credited seconds per
            second, which also sees what a predictor costs, but makes decisions depend on the clock.
        full_steps: Real steps of a Full phase between cycles.
        correct_steps: Real steps of a Correct phase; the verdict falls at its end.
    """

    portfolio: tuple[str, ...] = attrs.field(default=("last-update", "drift"), validator=_distinct)
    multipliers: tuple[float, ...] = attrs.field(default=(0.5, 1.0, 2.0, 4.0, 8.0), validator=_multipliers)
    alpha: float = attrs.field(default=1.0, validator=between(0.0))
    ridge: float = attrs.field(default=1.0, validator=between(0.0, low_open=True))
    discount: float = attrs.field(default=0.98, validator=between(0.0, 1.0, low_open=True))
    least_reward: float = attrs.field(default=0.1, validator=between(0.0))
    reward: str = attrs.field(default="steps", validator=choice("steps", "seconds"))
    full_steps: int = attrs.field(default=20, validator=between(1))
    correct_steps: int = attrs.field(default=10, validator=between(1))


def context(state: EngineState) -> NDArray[np.float64]:
    """Features of the moment, shape ``(CONTEXT_SIZE,)``, each in [-1, 1] and free of any scale.

    A constant, the straightness of the path, the confidence, the learning rate over its peak, the loss
    trend in deviations, and the progress ``t / (t + 1000)`` at real step t.
    """
    s = state.statistics
    fall = s.loss_ema(64) - s.loss_ema(4)
    trend = math.tanh(fall / s.loss_deviation) if s.loss_deviation > 0.0 and math.isfinite(fall) else 0.0
    rate = state.learning_rate / state.peak_learning_rate if state.peak_learning_rate > 0.0 else 1.0
    straight = state.straightness if math.isfinite(state.straightness) else 0.0
    return np.array([1.0, straight, state.confidence, rate, trend, state.step / (state.step + 1000.0)])


class Arm:
    """Ridge regression of an arm's reward on the context, with a confidence bound.

    Args:
        ridge: Regularisation.

    Example:
        >>> arm = Arm(1.0)
        >>> arm.bound(np.ones(CONTEXT_SIZE), alpha=0.0)
        0.0
    """

    def __init__(self, ridge: float) -> None:
        self._ridge = ridge
        self.gram = np.zeros((CONTEXT_SIZE, CONTEXT_SIZE))
        self.moment = np.zeros(CONTEXT_SIZE)

    def bound(self, x: NDArray[np.float64], alpha: float) -> float:
        """Upper confidence bound ``x . theta + alpha * sqrt(x' A^-1 x)``, ``A = ridge * I + sum x x'``.

        Li, Chu, Langford and Schapire, "A contextual-bandit approach to personalized news article
        recommendation" (WWW 2010), algorithm 1.
        """
        solved = np.linalg.solve(self.gram + self._ridge * np.eye(CONTEXT_SIZE), x)
        return float(solved @ self.moment) + alpha * math.sqrt(max(float(x @ solved), 0.0))

    def learn(self, x: NDArray[np.float64], reward: float) -> None:
        """Take in one reward."""
        self.gram += np.outer(x, x)
        self.moment += reward * x

    def fade(self, discount: float) -> None:
        """Trust the past less (Russac, Vernade and Cappé, NeurIPS 2019)."""
        self.gram *= discount
        self.moment *= discount


class LinUcb:
    """Full, Predict, Correct in turn; a contextual bandit picks predictor and horizon, or no jump at all.

    An arm is a predictor with a horizon of some history windows. Its reward is the verified credit per
    real step of the trial, and -1 for a failed trial, whose real steps are all lost; a refused jump earns 0.
    No jump earns `least_reward`.

    Example:
        >>> LinUcb().portfolio
        ('last-update', 'drift')
    """

    name: ClassVar[str] = "linucb"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"window-means", "straightness"})
    Config: ClassVar[type] = LinUcbConfig

    def __init__(self, config: LinUcbConfig | None = None) -> None:
        self.config = config or LinUcbConfig()
        self.clock: Callable[[], float] = time.perf_counter
        self.arms: dict[tuple[str, float], Arm] = {}
        self._open: tuple[tuple[str, float], NDArray[np.float64], float] | None = None

    @property
    def portfolio(self) -> tuple[str, ...]:
        """Predictors that the engine has to build beside the default one."""
        return self.config.portfolio

    def choose(self, state: EngineState) -> Action:
        """Predict with the arm of the highest bound where that is worth more than no jump."""
        c = self.config
        if state.phase is Phase.PREDICT:
            return Action(Phase.CORRECT, c.correct_steps, "Correct follows Predict")
        if not state.may_predict:
            return Action(Phase.FULL, c.full_steps, state.why_not or "Predict is not allowed")
        names = [n for n in self.portfolio or (state.default_predictor,) if state.predictor_ready.get(n)]
        if not names:
            return Action(Phase.FULL, c.full_steps, "no predictor is ready")
        x = context(state)
        bounds = {
            key: self._arm(key).bound(x, c.alpha)
            for key in ((name, multiplier) for multiplier in sorted(c.multipliers) for name in names)
        }
        best = max(bounds, key=lambda key: bounds[key])  # among equals, the first and shortest
        if bounds[best] < c.least_reward:
            reason = f"no arm promises {c.least_reward:g} per real step, the best {bounds[best]:.3g}"
            return Action(Phase.FULL, c.full_steps, reason)
        self._open = (best, x, self._now())
        name, multiplier = best
        return Action(
            Phase.PREDICT,
            0,
            f"{name} for {multiplier:g} windows may earn {bounds[best]:.3g} per real step",
            predictor=name,
            horizon=multiplier * state.window,
            settle=c.correct_steps,
        )

    def proceed(self, state: EngineState) -> bool:
        """A choice stands."""
        return True

    def feedback(self, outcome: Outcome) -> None:
        """Learn the reward of the arm that was played."""
        if self._open is None:
            return
        key, x, started = self._open
        self._open = None
        for arm in self.arms.values():
            arm.fade(self.config.discount)
        self._arm(key).learn(x, self._reward(outcome, self._now() - started))

    def _now(self) -> float:
        """The clock, where it is looked at: on many processes all of them must ask it together."""
        return self.clock() if self.config.reward == "seconds" else 0.0

    def _reward(self, outcome: Outcome, seconds: float) -> float:
        if not outcome.kept:
            return -1.0 if outcome.jumps else 0.0
        if self.config.reward == "seconds":
            return outcome.credit_seconds / max(seconds, 1e-9)
        return outcome.credit_steps / max(outcome.real_steps, 1)

    def _arm(self, key: tuple[str, float]) -> Arm:
        if key not in self.arms:
            self.arms[key] = Arm(self.config.ridge)
        return self.arms[key]

    def state_dict(self) -> dict[str, Any]:
        """What each arm has learned, and the arm that is being played, as plain data."""
        return {
            "arms": [
                {
                    "predictor": name,
                    "multiplier": multiplier,
                    "gram": arm.gram.tolist(),
                    "moment": arm.moment.tolist(),
                }
                for (name, multiplier), arm in self.arms.items()
            ],
            "open": None if self._open is None else self._played(*self._open),
        }

    def _played(self, key: tuple[str, float], x: NDArray[np.float64], started: float) -> list[Any]:
        return [*key, x.tolist(), self._now() - started]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.arms, self._open = {}, None
        for row in state["arms"]:
            arm = self._arm((row["predictor"], row["multiplier"]))
            arm.gram, arm.moment = np.array(row["gram"]), np.array(row["moment"])
        if state["open"] is not None:
            name, multiplier, x, seconds = state["open"]
            self._open = (name, multiplier), np.array(x), self._now() - seconds
