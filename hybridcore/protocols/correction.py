"""What a corrector learns from and answers."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Buckets, ParamGroup, ParamLayout
from hybridcore.protocols.predictor import Prediction

if TYPE_CHECKING:
    from hybridcore.correction.compression import CompressedBuckets
    from hybridcore.correction.store import ResidualStore
    from hybridcore.history import History

__all__ = ["Correction", "Corrector", "Residual", "Situation"]


@attrs.frozen(slots=True, eq=False)
class Situation:
    """Where the run is when a change is about to be applied.

    Attributes:
        step: Real steps so far.
        features: `hybridcore.state.Statistics.features`, shape (28,), float64.
        predictor: Registry name of the predictor that proposes the change.
        horizon: Optimizer steps that the change should be worth.
        loss: Average training loss now; the unit of all loss changes.
        predicted_change: Loss after the change minus loss before it, as the predictor, or the slope of the
            loss curve, has it; NaN while unknown.
    """

    step: int
    features: NDArray[np.float64]
    predictor: str
    horizon: float
    loss: float
    predicted_change: float


@attrs.frozen(slots=True, eq=False)
class Residual:
    """What a prediction said and what became of it.

    Attributes:
        situation: Where the run was.
        realised_change: Loss right after the change minus loss before it; NaN where it was not measured.
        groups: Per group of parameters, the inner products ``<r, p>`` and ``<p, p>`` of the realised and the
            predicted displacement per optimizer step: r of the real steps after the change, p of the change
            itself; empty where they were not measured.
        weights: ``r - p`` per step in low rank; None where it is not kept.
    """

    situation: Situation
    realised_change: float
    groups: Mapping[ParamGroup, tuple[float, float]] = attrs.field(factory=dict)
    weights: CompressedBuckets | None = None


@attrs.frozen(slots=True)
class Correction:
    """What a corrector makes of a prediction; the default changes nothing.

    Attributes:
        scale: Multiplier of the whole change.
        gains: Multiplier per group of parameters, on top of `scale`; missing groups count 1.0.
        residual: Change per optimizer step to be added, as buckets, or None.
        predicted_change: Corrected loss change of the prediction as it was proposed; NaN while unknown.
    """

    scale: float = 1.0
    gains: Mapping[ParamGroup, float] = attrs.field(factory=dict)
    residual: Buckets | None = None
    predicted_change: float = float("nan")

    @property
    def neutral(self) -> bool:
        """Whether it leaves the change as it is."""
        return self.scale == 1.0 and self.residual is None and all(g == 1.0 for g in self.gains.values())


@runtime_checkable
class Corrector(Protocol):
    """Learns from residuals and corrects later predictions. `CorrectorContract` tests every sentence here.

    ``Config`` keys live in ``[correction.<name>]``. The class carries two facts that save work where they
    are False: ``measures_weights``, whether it reads `Residual.groups`, and ``rank``, of the class or the
    instance, the rank of the weight residual that it wants, 0 for none.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    measures_weights: ClassVar[bool]

    def reset(self, layout: ParamLayout, store: ResidualStore) -> None:
        """Forget everything and prepare for a model of this layout; the store holds what was observed."""
        ...

    def observe(self, residual: Residual) -> None:
        """Hear of a prediction's outcome; the store has it too. Non-finite numbers teach nothing."""
        ...

    def correct(
        self, prediction: Prediction, situation: Situation, history: History, xp: ModuleType
    ) -> Correction:
        """Correct a prediction; every number is finite, and without observations nothing is changed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...
