"""Corrector `gains`: each group of parameters goes as far as the real steps after jumps went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between
from hybridcore.correction.compression import CompressedBuckets
from hybridcore.correction.store import ResidualStore
from hybridcore.history import History
from hybridcore.layout import ParamGroup, ParamLayout
from hybridcore.protocols import API_VERSION, Correction, Prediction, Residual, Situation

__all__ = ["Gains"]


@attrs.frozen(kw_only=True)
class GainsConfig:
    """Table ``[correction.gains]``.

    Attributes:
        forgetting: Weight of the past against each new measurement.
        prior: Measurements' worth of belief in a gain of one.
        max_gain: Largest gain of a group.
        relative: Divide the gains by their mean over the change, so that its length stays what the
            controller chose and only its share per group moves.
        rank: Rank of the weight residual that is added to later changes; 0 adds none.
    """

    forgetting: float = attrs.field(default=0.9, validator=between(0.0, 1.0, low_open=True))
    prior: float = attrs.field(default=2.0, validator=between(0.0, low_open=True))
    max_gain: float = attrs.field(default=1.5, validator=between(0.0, low_open=True))
    relative: bool = False
    rank: int = attrs.field(default=0, validator=between(0))


class Gains:
    """Learns a gain per group of parameters, and, if asked, a low-rank residual.

    After a change with displacement p per optimizer step, the real steps show the displacement r per step.
    The gain of a group minimises ``sum_i f^(n-i) |r_i - g p_i|^2`` plus `prior` mean terms around g = 1::

        g = (sum f^(n-i) <r_i, p_i> + prior * m) / (sum f^(n-i) <p_i, p_i> + prior * m)

    with m the mean of ``<p, p>``: scalar recursive least squares with forgetting (Haykin, "Adaptive Filter
    Theory", chapter 10), bounded to ``[0, max_gain]``. What no gain explains, ``e = r - g p``, is added to
    later changes in low rank, times the coefficient with which e has carried over from one measurement to
    the next, in [0, 1]; noise does not carry over.

    Example:
        >>> corrector = Gains()
        >>> corrector.reset(ParamLayout.plan([]), ResidualStore())
        >>> place = Situation(9, np.zeros(28), "drift", 20.0, 2.0, -0.4)
        >>> for _ in range(50):
        ...     corrector.observe(Residual(place, -0.1, {ParamGroup.MATRIX: (0.5, 1.0)}))
        >>> round(corrector.gains()[ParamGroup.MATRIX], 2)
        0.58
    """

    name: ClassVar[str] = "gains"
    api_version: ClassVar[int] = API_VERSION
    measures_weights: ClassVar[bool] = True
    Config: ClassVar[type] = GainsConfig

    def __init__(self, config: GainsConfig | None = None) -> None:
        self.config = config or GainsConfig()
        self._layout: ParamLayout | None = None
        self._forget()

    @property
    def rank(self) -> int:
        """Rank of the weight residual that it wants."""
        return self.config.rank

    def _forget(self) -> None:
        self._sums: dict[ParamGroup, tuple[float, float, float]] = {}
        self._residual: CompressedBuckets | None = None
        self._carried = self._carried_of = 0.0

    def reset(self, layout: ParamLayout, store: ResidualStore) -> None:
        """Forget everything; only residuals of this layout's sizes are added to changes."""
        self._layout = layout
        self._forget()

    def observe(self, residual: Residual) -> None:
        """Take in one measurement of displacements."""
        f = self.config.forgetting
        for group, (cross, square) in residual.groups.items():
            if not (math.isfinite(cross) and 0.0 < square < math.inf):
                continue
            a, b, n = self._sums.get(group, (0.0, 0.0, 0.0))
            self._sums[group] = (f * a + cross, f * b + square, f * n + 1.0)
        if self.config.rank and residual.weights is not None and self._fits(residual.weights):
            self._carry_over(residual.weights.to_host())

    def _fits(self, weights: CompressedBuckets) -> bool:
        sizes = self._layout.bucket_sizes if self._layout is not None else ()
        return weights.sizes == sizes and math.isfinite(weights.norm)

    def _carry_over(self, new: CompressedBuckets) -> None:
        if self._residual is not None:
            f = self.config.forgetting
            pairs = list(zip(new.expand(np), self._residual.expand(np), strict=True))
            self._carried = f * self._carried + sum(float(a @ b) for a, b in pairs)
            self._carried_of = f * self._carried_of + sum(float(b @ b) for _, b in pairs)
        self._residual = new

    @property
    def carry(self) -> float:
        """Coefficient with which the weight residual carried over so far, in [0, 1]."""
        return min(max(self._carried / self._carried_of, 0.0), 1.0) if self._carried_of > 0.0 else 0.0

    def gains(self) -> dict[ParamGroup, float]:
        """Gain of each group that was measured."""
        c = self.config
        raw: dict[ParamGroup, float] = {}
        for group, (a, b, n) in self._sums.items():
            believed = c.prior * b / n
            gain = (a + believed) / (b + believed)
            raw[group] = gain if math.isfinite(gain) else 1.0
        if c.relative and raw:
            squares = {g: b / n for g, (_, b, n) in self._sums.items()}
            whole = sum(squares.values())
            mean = sum(max(raw[g], 0.0) * squares[g] for g in raw) / whole if whole > 0.0 else 1.0
            raw = {g: v / mean if mean > 0.0 else 1.0 for g, v in raw.items()}
        return {g: min(max(v, 0.0), c.max_gain) for g, v in raw.items()}

    def correct(
        self, prediction: Prediction, situation: Situation, history: History, xp: ModuleType
    ) -> Correction:
        """Gains, and what is left of the weight residual."""
        change = None
        carry = self.carry
        if self._residual is not None and carry > 0.0:
            devices = [b.device for b in prediction.deltas]
            kept = zip(self._residual.expand(xp, devices), prediction.deltas, strict=True)
            # A store may come from a run in another precision.
            change = tuple((b if b.dtype == d.dtype else xp.astype(b, d.dtype)) * carry for b, d in kept)
        return Correction(gains=self.gains(), residual=change, predicted_change=situation.predicted_change)

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and the low-rank residual."""
        return {
            "sums": {g.value: list(s) for g, s in self._sums.items()},
            "carried": [self._carried, self._carried_of],
            "residual": self._residual,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._sums = {ParamGroup(g): (s[0], s[1], s[2]) for g, s in state["sums"].items()}
        self._carried, self._carried_of = state["carried"]
        self._residual = state["residual"]
