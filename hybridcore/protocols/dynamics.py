"""What a model of the training dynamics learns from and forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from types import ModuleType
from typing import Any, ClassVar, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.protocols.control import Action

__all__ = ["Dynamics", "Rollout", "StepOutcome"]


@attrs.frozen(slots=True)
class StepOutcome:
    """What followed an action.

    Attributes:
        loss: Training loss one observation later.
        seconds: Wall-clock seconds per real step until then.
    """

    loss: float
    seconds: float


@attrs.frozen(slots=True, eq=False)
class Rollout:
    """Forecast of the training losses that follow an action; entry j - 1 is for j observations ahead (F15).

    Attributes:
        mean: Expected loss, shape (horizon,).
        epistemic: Variance for want of knowledge: what the members of an ensemble disagree by.
        aleatoric: Variance of the loss's own noise, as predicted. Both are calibrated on recent errors (F16).
        seconds: Expected seconds of one real step.
        confidence: In [0, 1]: probability that the last loss lies within two running deviations of its
            forecast, as often as it recently did; 0 before there are errors to learn that from (F17).
    """

    mean: NDArray[np.float64]
    epistemic: NDArray[np.float64]
    aleatoric: NDArray[np.float64]
    seconds: NDArray[np.float64]
    confidence: float

    def interval(self, coverage: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper ends of the central interval that holds this share of the losses."""
        reach = NormalDist().inv_cdf(0.5 + coverage / 2.0) * np.sqrt(self.epistemic + self.aleatoric)
        return self.mean - reach, self.mean + reach


@runtime_checkable
class Dynamics(Protocol):
    """Foretells the loss under an action, learning online. `DynamicsContract` tests every sentence here.

    Time is counted in observations; one stands for a fixed number of real steps. Losses may have any
    scale: multiplying all of them by a constant multiplies forecasts by it and leaves confidence as it is.
    ``Config`` keys live in ``[dynamics.<name>]``. No decision depends on a clock, so that the same seed and
    the same losses give the same forecasts bit for bit (F72).
    """

    name: ClassVar[str]
    api_version: ClassVar[int]

    def reset(
        self, predictors: Sequence[str], rng: np.random.Generator, xp: ModuleType, memory_bytes: int
    ) -> None:
        """Forget everything.

        Args:
            predictors: Registry names that actions may carry.
            rng: Source of all randomness.
            xp: Array namespace to compute in.
            memory_bytes: Upper bound of `nbytes`; fewer observations are remembered to stay inside.

        Raises:
            MemoryBudgetError: It does not fit, even at its smallest.
        """
        ...

    def observe(self, features: NDArray[np.float64], action: Action, outcome: StepOutcome) -> None:
        """Remember one observation; cheap, learns nothing yet.

        Args:
            features: `Statistics.features` before the action, shape ``(len(FEATURE_NAMES),)``.
            action: What was done.
            outcome: What came of it.
        """
        ...

    def interrupt(self) -> None:
        """The path breaks here (a rollback): what comes next does not follow from what came before."""
        ...

    def train(self, updates: int) -> int:
        """Calibrate on what is new, then take at most so many training updates; gives those taken."""
        ...

    def rollout(self, features: NDArray[np.float64], action: Action, horizon: int) -> Rollout:
        """Forecast if `action` is taken now and real steps follow; changes nothing but `confidence`.

        Args:
            features: Of now, right after the newest observation.
            action: What would be done.
            horizon: Observations ahead, at least 1.
        """
        ...

    @property
    def confidence(self) -> float:
        """That of the newest rollout; 0 before the first."""
        ...

    @property
    def samples(self) -> int:
        """Observations remembered now."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept (F51)."""
        ...

    @property
    def flops_per_update(self) -> float:
        """Floating-point operations of one update, about; what training is budgeted by."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and NumPy arrays, random generators included."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, so that all that follows is equal bit for bit."""
        ...
