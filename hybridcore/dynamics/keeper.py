"""Feeds a dynamics model during a run, and trains it at phase boundaries within its share of the cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hybridcore.config import DynamicsConfig, HybridConfig
from hybridcore.containment import Containment
from hybridcore.protocols import Action, Dynamics, Phase, Rollout, StepOutcome, StepRecord
from hybridcore.replies import check_rollout
from hybridcore.substitutes import no_forecast

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["DynamicsKeeper"]

T = TypeVar("T")

Features = Callable[[], NDArray[np.float64]]


class DynamicsKeeper:
    """What the engine calls at each real step and at each phase boundary.

    The cost of a real step is counted as ``6 * parameters * examples`` floating-point operations (a forward
    pass takes two per weight and example, a backward pass four; Kaplan et al. 2020). A share of it may go
    into training updates; what is not spent is saved up, for at most as long as `max_updates` need. So the
    number of updates follows from counts alone (F72), unless ``count_seconds`` bounds it by time too.

    Args:
        model: The model, reset for this run.
        config: Table ``[dynamics]``.
        parameters: Trainable weights of the user's model.
        containment: Calls the model.

    Attributes:
        updates: Training updates so far.
        seconds: Seconds spent on training and calibration so far.
        informed: The model has had confidence above 0 once; before, it knows nothing of this run, and nobody
            should ask it. Where the share pays for no training, it stays so.
        agree: Mean of a number over all processes of the run.

    Example:
        >>> import array_api_compat.numpy as xp
        >>> from hybridcore.dynamics.linear import Linear
        >>> model = Linear()
        >>> model.reset([], np.random.default_rng(0), xp, 1 << 24)
        >>> keeper = DynamicsKeeper(model, DynamicsConfig(name="linear", stride=1), parameters=10**8)
        >>> real_step = Action(Phase.FULL, 1, "")
        >>> for step in range(1, 41):
        ...     record = StepRecord(step, Phase.FULL, 1.0 / step, 1.0, 0.1, 0.01)
        ...     keeper.observe_step(record, lambda: np.zeros(28), real_step)
        >>> keeper.at_boundary(seconds_per_step=0.01, steps=40, examples=64), model.samples
        (1, 31)
    """

    def __init__(
        self,
        model: Dynamics,
        config: DynamicsConfig,
        parameters: int,
        containment: Containment | None = None,
    ) -> None:
        self._containment = containment if containment is not None else Containment()
        self.model, self._config, self._parameters = model, config, parameters
        self.updates, self.seconds, self.informed = 0, 0.0, False
        self.agree: Callable[[float], float] = float
        self._credit = self._time_credit = 0.0
        self._before: NDArray[np.float64] | None = None
        self._action: Action | None = None
        self._waited, self._elapsed = 0, 0.0

    @classmethod
    def from_config(
        cls,
        config: HybridConfig,
        registry: Registry,
        predictors: Sequence[str],
        parameters: int,
        rng: np.random.Generator,
        xp: ModuleType,
    ) -> DynamicsKeeper | None:
        """The keeper of the model that the configuration names; None for ``"none"``.

        Args:
            config: The whole configuration.
            registry: Where the name is looked up.
            predictors: Registry names that actions may carry.
            parameters: Trainable weights of the user's model.
            rng: Source of the model's randomness.
            xp: Array namespace that the model computes in.

        Raises:
            PluginError: The name is unknown.
            ConfigError: The model's own table is wrong.
            MemoryBudgetError: The model does not fit into ``dynamics.memory_budget_mib``.
        """
        from hybridcore.components import build_component

        table = config.dynamics
        if table.name == "none":
            return None
        model: Dynamics = build_component(
            registry.get("dynamics", table.name),
            table.options.get(table.name, {}),
            f"dynamics.{table.name}",
        )
        model.reset(predictors, rng, xp, int(table.memory_budget_mib * 2**20))
        return cls(model, table, parameters)

    def observe_step(self, record: StepRecord, features: Features, action: Action) -> None:
        """Hear of one real step that changed the weights; between observations this costs next to nothing.

        Args:
            record: The step.
            features: Gives the features after it; called once per observation only.
            action: What led to the step: the jump right before it, or the phase's real step.
        """
        if not math.isfinite(record.loss):
            self.interrupt()
            return
        self._waited += 1
        self._elapsed += record.seconds
        # A jump anywhere between two observations is what the second one is due to.
        if self._action is None or self._action.phase is not Phase.PREDICT:
            self._action = action
        if self._before is None or self._waited >= self._config.stride:
            if self._before is not None:
                outcome = StepOutcome(record.loss, self._elapsed / self._waited)
                self._call("observe", self.model.observe, None, self._before, self._action, outcome)
            self._before, self._action = features(), None
            self._waited, self._elapsed = 0, 0.0

    def at_boundary(self, seconds_per_step: float, steps: int, examples: int = 0) -> int:
        """Train within the share; to be called where a phase ends.

        Args:
            seconds_per_step: Seconds of a real step; read only under ``count_seconds``.
            steps: Real steps since the last call.
            examples: Examples per batch; 0 where not known, which counts as one.

        Returns:
            Training updates taken.
        """
        c, flops = self._config, max(self._call("flops_per_update", self._flops, 1.0), 1.0)
        self._credit += c.share * steps * 6.0 * self._parameters * max(examples, 1)
        self._credit = min(self._credit, (c.max_updates + 1) * flops)
        # Calibrating costs about as much as one update.
        updates = min(c.max_updates, int(self._credit / flops) - 1)
        if c.count_seconds:
            if math.isfinite(seconds_per_step):
                self._time_credit += c.share * steps * seconds_per_step
            each = self.seconds / self.updates if self.updates else 0.0
            updates = min(updates, int(self._time_credit / each)) if each else min(updates, 1)
            if self._time_credit <= 0.0:
                updates = 0
        if updates < 1:
            return 0
        start = time.perf_counter()
        done = self._call("train", self.model.train, 0, updates, check=int)
        spent = time.perf_counter() - start
        self._credit -= (done + 1) * flops
        spent = self.agree(spent) if c.count_seconds else spent
        self._time_credit -= spent if c.count_seconds else 0.0
        self.updates += done
        self.seconds += spent
        return done

    def interrupt(self) -> None:
        """The path breaks here: a rollback, a skipped step."""
        self._before = self._action = None
        self._waited, self._elapsed = 0, 0.0
        self._call("interrupt", self.model.interrupt, None)

    def _flops(self) -> float:
        return float(self.model.flops_per_update)

    def _call(
        self,
        method: str,
        function: Callable[..., T],
        otherwise: T,
        *args: Any,
        check: Callable[[T], object] | None = None,
    ) -> T:
        name = self.model.name
        return self._containment.call(
            "dynamics", name, method, function, *args, otherwise=otherwise, check=check
        )

    def rollout(self, features: NDArray[np.float64], action: Action, horizon: int) -> Rollout:
        """Forecast for each of `horizon` real steps, between observations by interpolation."""
        stride = self._config.stride
        ticks = max(1, math.ceil(horizon / stride))
        rollout = self._call(
            "rollout",
            self.model.rollout,
            no_forecast(ticks),
            features,
            action,
            ticks,
            check=lambda found: check_rollout(found, ticks, informed=self.model.samples > 0),
        )
        self.informed = self.informed or rollout.confidence > 0.0
        steps = np.arange(1.0, horizon + 1.0)
        places = stride * np.arange(1.0, ticks + 1.0)
        return Rollout(
            mean=np.interp(steps, places, rollout.mean),
            epistemic=np.interp(steps, places, rollout.epistemic),
            aleatoric=np.interp(steps, places, rollout.aleatoric),
            seconds=np.interp(steps, places, rollout.seconds),
            confidence=rollout.confidence,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the model and what it remembers (F51)."""
        return self.model.nbytes

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and arrays."""
        action = self._action
        nothing: dict[str, Any] = {}
        return {
            "model": self._call("state_dict", self.model.state_dict, nothing),
            "credit": self._credit,
            "time_credit": self._time_credit,
            "updates": self.updates,
            "informed": self.informed,
            "seconds": self.seconds,
            "before": None if self._before is None else np.array(self._before),
            "action": action and [action.phase.value, action.predictor, action.horizon],
            "waited": self._waited,
            "elapsed": self._elapsed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self._credit, self._time_credit = state["credit"], state["time_credit"]
        self.updates, self.seconds = state["updates"], state["seconds"]
        self.informed = bool(state["informed"])
        self._waited, self._elapsed = state["waited"], state["elapsed"]
        before, action = state["before"], state["action"]
        self._before = None if before is None else np.array(before)
        self._action = None
        if action is not None:
            phase, predictor, horizon = action
            self._action = Action(Phase(phase), 1, "", predictor=predictor, horizon=horizon)
