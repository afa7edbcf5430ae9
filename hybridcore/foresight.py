"""A dynamics model at work in a run: fed at real steps, trained at phase boundaries, asked by controllers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridcore.checkpoint.attributes import put, take
from hybridcore.config import HybridConfig
from hybridcore.containment import Containment
from hybridcore.counts import Counts
from hybridcore.dynamics.keeper import DynamicsKeeper
from hybridcore.errors import HybridCoreError
from hybridcore.history import History
from hybridcore.phases import PhaseMachine
from hybridcore.protocols import Action, Adapter, Dynamics, Phase, Rollout, StepRecord, UsesKernels
from hybridcore.state import Statistics

__all__ = ["Foresight"]

MOMENTS_EVERY = 50
"""Real steps for which the optimizer's moments, whose statistics cost a pass, count as current."""

_STATE = ("_moments", "_moments_at", "_action", "_trained_at")


class Foresight:
    """Connects a dynamics model with what the engine knows.

    Args:
        model: The model.
        config: Table ``[dynamics]``, seed and length of the run.
        adapter: Gives the optimizer's moments and the namespace.
        statistics: Gives the features.
        history: Gives the straightness, and the kernels that a model asks for roll-outs.
        machine: Gives the phase.
        counts: Gives the step.
        predictors: Registry names that actions may carry.
        xp: Array namespace that the model computes in.
        containment: Calls the model.

    Attributes:
        lost: The model could not even be reset.
    """

    def __init__(
        self,
        model: Dynamics,
        config: HybridConfig,
        adapter: Adapter,
        statistics: Statistics,
        history: History,
        machine: PhaseMachine,
        counts: Counts,
        predictors: list[str],
        xp: ModuleType,
        containment: Containment | None = None,
    ) -> None:
        containment = containment if containment is not None else Containment()
        self._containment = containment
        self._adapter, self._statistics, self._history = adapter, statistics, history
        self._machine, self._counts, self._steps = machine, counts, config.run.steps
        rng = np.random.default_rng(np.random.SeedSequence([config.run.seed, 0xD1]))
        memory = int(config.dynamics.memory_budget_mib * 2**20)
        containment.call(
            "dynamics",
            model.name,
            "reset",
            model.reset,
            predictors,
            rng,
            xp,
            memory,
            otherwise=None,
            passes=(HybridCoreError,),
        )
        if isinstance(model, UsesKernels):
            model.kernels = history.kernels
        self.lost = ["dynamics", model.name] in containment.dropped
        self.keeper = DynamicsKeeper(model, config.dynamics, adapter.layout.total, containment)
        self._moments: dict[str, float] = {}
        self._moments_at = -MOMENTS_EVERY
        self._action: Action | None = None
        self._trained_at = 0

    def jumped(self, action: Action) -> None:
        """A change was applied; what the next step shows is due to it."""
        self._action = action

    def observe(self, record: StepRecord) -> None:
        """Hear of a real step that changed the weights."""
        action = self._action or Action(record.phase, 1, "")
        self._action = None
        self.keeper.observe_step(record, self.features, action)

    def train(self, examples: int) -> None:
        """Train within the share; to be called at each phase boundary."""
        steps = self._counts.real_steps - self._trained_at
        if steps >= MOMENTS_EVERY:
            self._trained_at = self._counts.real_steps
            self.keeper.at_boundary(self._statistics.seconds_per_step, steps, examples)

    def interrupt(self) -> None:
        """The path breaks here."""
        self._action = None
        self.keeper.interrupt()

    def forecast(self, action: Action, horizon: int) -> Rollout:
        """Training losses of the next `horizon` real steps if `action` is taken now."""
        with self._containment.own_code():
            features = self.features()
        return self.keeper.rollout(features, action, horizon)

    def features(self) -> NDArray[np.float64]:
        """Features of now, shape ``(len(FEATURE_NAMES),)``."""
        step, machine = self._counts.real_steps, self._machine
        if step - self._moments_at >= MOMENTS_EVERY:
            self._moments, self._moments_at = self._adapter.moments(), step
        straightness = self._history.straightness()
        return self._statistics.features(
            phase=machine.phase,
            phase_progress=min(1.0, machine.done / max(machine.length, 1)),
            progress=min(1.0, step / self._steps),
            straightness=straightness if math.isfinite(straightness) else 0.0,
            moments=self._moments,
        )

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and arrays."""
        return {**take(self, _STATE), "keeper": self.keeper.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        put(self, _STATE, state)
        self.keeper.load_state_dict(state["keeper"])

    def summary(self) -> dict[str, Any]:
        """Updates, seconds and bytes, for the run's summary."""
        return {
            "dynamics_updates": self.keeper.updates,
            "dynamics_seconds": self.keeper.seconds,
            "dynamics_bytes": self.keeper.nbytes,
        }

    def confidence(self, predictor: str, horizon: float) -> float:
        """How sure the model is of the loss one window after such a jump, in [0, 1] (F5, F17).

        A model that knows nothing yet has nothing against the jump: 1.
        """
        action = Action(Phase.PREDICT, 0, "", predictor=predictor, horizon=horizon)
        confidence = self.forecast(action, self._history.window).confidence
        return confidence if self.keeper.informed else 1.0
