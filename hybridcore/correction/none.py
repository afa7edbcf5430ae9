"""Corrector `none`: predictions stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

from hybridcore.correction.store import ResidualStore
from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.protocols import API_VERSION, Correction, Prediction, Residual, Situation

__all__ = ["NoCorrection"]


class NoCorrection:
    """Changes nothing, and nothing is measured for it.

    Example:
        >>> NoCorrection().name
        'none'
    """

    name: ClassVar[str] = "none"
    api_version: ClassVar[int] = API_VERSION
    measures_weights: ClassVar[bool] = False
    rank: ClassVar[int] = 0

    def reset(self, layout: ParamLayout, store: ResidualStore) -> None:
        """Nothing is kept."""

    def observe(self, residual: Residual) -> None:
        """Nothing is learned."""

    def correct(
        self, prediction: Prediction, situation: Situation, history: History, xp: ModuleType
    ) -> Correction:
        """The correction that changes nothing."""
        return Correction(predicted_change=situation.predicted_change)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
