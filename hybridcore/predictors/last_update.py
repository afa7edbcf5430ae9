"""Predictor `last-update`: the last optimizer step, repeated."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.protocols import API_VERSION, Prediction, StepRecord

__all__ = ["LastUpdate"]


class LastUpdate:
    """Repeats the last real update.

    The change is ``horizon * (w_t - w_{t-1})``; under plain SGD this is a step of ``horizon`` times the
    learning rate along the same gradient. Pays where the learning rate is too small for the curvature
    (Rahamim et al., Fast Forwarding Low-Rank Training, EMNLP 2024); with small batches the update is mostly
    noise and long repetitions harm.

    Example:
        >>> LastUpdate().name
        'last-update'
    """

    name: ClassVar[str] = "last-update"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"last-update"})

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Nothing is kept."""

    def observe(self, record: StepRecord) -> None:
        """Nothing is learned from scalars."""

    def ready(self, history: History) -> bool:
        """Whether a real step was seen since the last break of the path."""
        return history.has_update

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Repeat the last update `horizon` times."""
        return Prediction(history.last_update(), horizon, 1.0, scale=horizon)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
