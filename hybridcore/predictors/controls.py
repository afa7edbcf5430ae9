"""The controls that a prediction has to beat: `none`, `frozen` and `random` (F74)."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.predictors.snapshots import length_of
from hybridcore.protocols import API_VERSION, Prediction, StepRecord

__all__ = ["Frozen", "NoPrediction", "RandomJump"]


class NoPrediction:
    """Control `none`: never ready, so that every jump is refused and only bookkeeping remains.

    Example:
        >>> NoPrediction().name
        'none'
    """

    name: ClassVar[str] = "none"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"last-update"})

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Nothing is kept."""

    def observe(self, record: StepRecord) -> None:
        """Nothing is learned."""

    def ready(self, history: History) -> bool:
        """Never."""
        return False

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Zero change; the engine does not ask for it."""
        zeros = tuple(xp.zeros_like(b) for b in history.last_update())
        return Prediction(zeros, horizon, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


class Frozen(LastUpdate):
    """Control `frozen`: same duty cycle, but the weights stay where they are.

    Example:
        >>> Frozen().name
        'frozen'
    """

    name: ClassVar[str] = "frozen"

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Zero change at the horizon asked for."""
        return Prediction(history.last_update(), horizon, 1.0, scale=0.0)


class RandomJump(LastUpdate):
    """Control `random`: a jump of the length that `last-update` would take, in a random direction.

    Example:
        >>> RandomJump().name
        'random'
    """

    name: ClassVar[str] = "random"

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Take over the run's random numbers."""
        self._rng = rng

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Gaussian direction with the norm of `horizon` last updates."""
        update = history.last_update()
        length = length_of(update, xp, history.kernels)
        direction = tuple(
            xp.asarray(
                self._rng.standard_normal(b.shape[0], dtype=np.float32), dtype=b.dtype, device=b.device
            )
            for b in update
        )
        size = length_of(direction, xp, history.kernels)
        return Prediction(direction, horizon, 1.0, scale=horizon * length / size if size > 0 else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """State of the random numbers."""
        return {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the same random numbers."""
        self._rng.bit_generator.state = state["rng"]
