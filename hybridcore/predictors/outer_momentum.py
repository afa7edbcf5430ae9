"""Predictor `outer-momentum`: Lookahead, step-K Nesterov and EMA-Nesterov as jumps."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between, choice
from hybridcore.history import History
from hybridcore.layout import Buckets, ParamLayout
from hybridcore.predictors.snapshots import combine, differences
from hybridcore.protocols import API_VERSION, Prediction, StepRecord

__all__ = ["OuterMomentum"]


@attrs.frozen(kw_only=True)
class OuterMomentumConfig:
    """Table ``[predictor.outer-momentum]``.

    Attributes:
        mode: ``"nesterov"``, ``"ema"`` or ``"lookahead"``.
        momentum: Coefficient of the buffer: per prediction (``"nesterov"``) or per real step (``"ema"``).
        length: ``"asked"`` scales the jump to the horizon asked for; ``"own"`` takes the length that the
            momentum itself gives.
        slow_step: Share of the way from slow to fast weights that ``"lookahead"`` keeps.
    """

    mode: str = attrs.field(default="nesterov", validator=choice("nesterov", "ema", "lookahead"))
    momentum: float = attrs.field(default=0.9, validator=between(0.0, 1.0, low_open=True, high_open=True))
    length: str = attrs.field(default="asked", validator=choice("asked", "own"))
    slow_step: float = attrs.field(default=0.5, validator=between(0.0, 1.0))


class OuterMomentum:
    """Momentum one level above the optimizer's own.

    With displacement d between the two newest window means of W real steps:

    - ``"nesterov"``: ``v <- mu v + d``, change ``mu v`` (Douillard et al., DiLoCo, 2023; the outer step of
      SNOO). On a straight line that is worth ``W mu (1 + mu + ... + mu^n)`` optimizer steps after n
      predictions. v lives on from jump to jump.
    - ``"ema"``: change ``beta / (1 - beta) * m``, m the mean of the updates with weights that decay by
      beta per real step, taken from the window displacements kept.
    - ``"lookahead"``: change ``-(1 - alpha) (w - s)``, a step back to the slow weights s, here the oldest
      window mean kept (Zhang, Lucas, Hinton and Ba, Lookahead Optimizer, NeurIPS 2019). Its horizon
      is negative: as many steps as it goes back.

    Example:
        >>> OuterMomentum().config.mode
        'nesterov'
    """

    name: ClassVar[str] = "outer-momentum"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"window-means"})
    Config: ClassVar[type] = OuterMomentumConfig

    def __init__(self, config: OuterMomentumConfig | None = None) -> None:
        self.config = config or OuterMomentumConfig()
        self._velocity: Buckets | None = None
        self._weight = 0.0

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Start with an empty buffer."""
        self._velocity, self._weight = None, 0.0

    def observe(self, record: StepRecord) -> None:
        """Nothing is learned from scalars."""

    def ready(self, history: History) -> bool:
        """Whether there are two window means."""
        return len(history.window_means) >= 2

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """One outer step."""
        c = self.config
        if c.mode == "lookahead":
            means, window = history.window_means, history.window
            age = history.open_steps + (len(means) - 1) * window + (window - 1) / 2.0
            back = tuple(w - s for w, s in zip(history.current(), means[0], strict=True))
            return Prediction(back, (c.slow_step - 1.0) * age, 1.0, scale=c.slow_step - 1.0)
        if c.mode == "ema":
            # The mean of the updates, per real step.
            steps = differences(history.window_means)
            decay = c.momentum**history.window
            shares = np.array([decay**age for age in reversed(range(len(steps)))])
            direction = combine(steps, shares / (shares.sum() * history.window), history)
            own = c.momentum / (1.0 - c.momentum)
            worth = 1.0
        else:
            newest = history.displacement(-1)
            self._weight = c.momentum * self._weight + 1.0
            if self._velocity is not None:
                newest = combine([newest, self._velocity], [1.0, c.momentum], history)
            self._velocity = direction = newest
            worth = self._weight * history.window
            own = c.momentum * worth
        wanted = horizon if c.length == "asked" else own
        return Prediction(direction, wanted, 1.0, scale=wanted / worth)

    def state_dict(self) -> dict[str, Any]:
        """The buffer and how many displacements it holds."""
        return {"velocity": self._velocity, "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._velocity, self._weight = state["velocity"], float(state["weight"])
