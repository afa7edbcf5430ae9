"""What a predictor proposes, and what it must offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Buckets, ParamLayout
from hybridcore.protocols.steps import StepRecord

if TYPE_CHECKING:
    from hybridcore.history import History

__all__ = ["LinearisingPredictor", "MeasuringPredictor", "Prediction", "Predictor"]


@attrs.frozen(slots=True)
class Prediction:
    """A proposed weight change.

    Attributes:
        deltas: Float32 buckets. The proposed change is ``scale * deltas`` and is worth `horizon` optimizer
            steps; it may point backward (averaging).
        horizon: Optimizer steps it stands for.
        confidence: In [0, 1].
        scale: Multiplier of `deltas`, so that scaling costs no pass over the weights.
        predicted_loss: Training loss expected after the change, or None.
    """

    deltas: Buckets
    horizon: float
    confidence: float
    scale: float = 1.0
    predicted_loss: float | None = None


@runtime_checkable
class Predictor(Protocol):
    """Proposes directions from weight history. `PredictorContract` tests every sentence here.

    The class carries ``name`` (kebab-case registry name), ``api_version``, ``needs`` (what the history
    must keep: any of ``"last-update"``, ``"window-means"``, ``"straightness"``, ``"reach"``) and optionally

    - ``Config``, an attrs class whose fields are the keys of the table ``[predictor.<name>]``;
    - ``windows``, an int of the class or the instance: window means it wants. The history keeps the most of
      what is wanted and ``history.windows``, or fewer where the memory budget ends;
    - ``predict_with``, see `MeasuringPredictor`.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    needs: ClassVar[frozenset[str]]

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Forget everything and prepare for a model of this layout."""
        ...

    def observe(self, record: StepRecord) -> None:
        """Hear of a real step."""
        ...

    def ready(self, history: History) -> bool:
        """Whether `predict` would have enough to go by."""
        ...

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Propose the change worth `horizon` more optimizer steps; never writes to history's arrays."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...


@runtime_checkable
class MeasuringPredictor(Predictor, Protocol):
    """A predictor that measures losses at weights of its choice before it proposes a change."""

    def predict_with(
        self, history: History, horizon: float, xp: ModuleType, measure: Callable[[Buckets], float]
    ) -> Prediction:
        """Like `predict`, which the engine calls instead where there are no probe examples.

        Args:
            history: The history.
            horizon: Optimizer steps that the change should be worth.
            xp: Array namespace of the buckets.
            measure: Mean probe loss of the current weights plus the buckets given. Each call is booked as
                one probe, and leaves the weights as they are.
        """
        ...


@runtime_checkable
class LinearisingPredictor(Predictor, Protocol):
    """A predictor that uses the residuals of the probe examples, where the adapter has ``"residuals"``."""

    def predict_linearised(
        self,
        history: History,
        horizon: float,
        xp: ModuleType,
        linearise: Callable[[Sequence[Buckets]], tuple[NDArray[np.float64], NDArray[np.float64]]],
        measure: Callable[[Buckets], float],
    ) -> Prediction:
        """Like `predict`, which the engine calls instead where there are no residuals or probe examples.

        Args:
            history: The history.
            horizon: Optimizer steps that the change should be worth.
            xp: Array namespace of the buckets.
            linearise: Residuals (n,) of all probe examples at the current weights, and their derivatives
                (n, k) along k changes; booked as a forward pass and two more for each direction.
            measure: See `MeasuringPredictor`.
        """
        ...
