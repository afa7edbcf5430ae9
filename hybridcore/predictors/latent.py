"""Predictor `latent`: a small model on the coordinates of the path, in a basis of recent displacements."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between, choice
from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.predictors.coordinates import COORDINATE_MODELS
from hybridcore.predictors.snapshots import combine, differences, gram
from hybridcore.protocols import API_VERSION, Prediction, StepRecord

__all__ = ["Latent"]


def _known_model(instance: Any, attribute: Any, value: Any) -> None:
    choice(*COORDINATE_MODELS)(instance, attribute, value)


@attrs.frozen(kw_only=True)
class LatentConfig:
    """Table ``[predictor.latent]``.

    Attributes:
        model: Name in `hybridcore.predictors.coordinates.COORDINATE_MODELS`.
        windows: Window means that the model learns from.
        rank: Most coordinates.
        order: Displacements that the model looks back on, at most.
        ridge: Pull of the model to a straight continuation, relative to the squares of what it learns from.
    """

    model: str = attrs.field(default="linear", validator=_known_model)
    windows: int = attrs.field(default=6, validator=between(3))
    rank: int = attrs.field(default=3, validator=between(1))
    order: int = attrs.field(default=2, validator=between(1))
    ridge: float = attrs.field(default=0.01, validator=between(0.0))


class Latent:
    """Foretells the path's coordinates instead of its weights.

    The window displacements ``d_i`` are written in the `rank` leading directions of their own span,
    ``d_i = U y_i`` (from their inner products, method of snapshots). A coordinate model continues y for
    H / W windows by ``dy``, and the change is ``U dy``. What lies outside the leading directions is taken for
    noise. RELEX and AlphaRL report nearly linear, low-rank drifts of this kind in long fine-tuning runs.

    Example:
        >>> Latent().config.model
        'linear'
    """

    name: ClassVar[str] = "latent"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"window-means"})
    Config: ClassVar[type] = LatentConfig

    def __init__(self, config: LatentConfig | None = None) -> None:
        self.config = config or LatentConfig()
        self.windows = self.config.windows
        self._model = COORDINATE_MODELS[self.config.model](self.config.order, self.config.ridge)

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Start with an untrained model."""
        self._model = COORDINATE_MODELS[self.config.model](self.config.order, self.config.ridge)

    def observe(self, record: StepRecord) -> None:
        """Nothing is learned from scalars."""

    def ready(self, history: History) -> bool:
        """Whether all windows that the history can keep are there; three at least."""
        return len(history.window_means) >= max(3, min(self.windows, history.windows))

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Continue the coordinates for `horizon` steps."""
        steps = differences(history.window_means[-self.windows :])
        products = gram(steps, xp, history.kernels)
        squares, vectors = np.linalg.eigh(products)
        # Float32 inner products carry about six digits of a square.
        keep = [i for i in reversed(range(len(squares))) if squares[i] > 1e-6 * squares[-1]]
        keep = keep[: self.config.rank]
        if not keep:
            return Prediction(steps[-1], horizon, 0.0, scale=0.0)
        whiten = vectors[:, keep] / np.sqrt(squares[keep])
        confidence = self._model.fit(products @ whiten)
        moved = self._model.extrapolate(horizon / history.window)
        return Prediction(combine(steps, whiten @ moved, history), horizon, confidence)

    def state_dict(self) -> dict[str, Any]:
        """The model's."""
        return {"model": self._model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._model.load_state_dict(state["model"])
