"""Controller `threshold`: the reference design's confidence gate and horizon rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from hybridcore.config import between
from hybridcore.protocols import API_VERSION, Action, Outcome, Phase
from hybridcore.state import EngineState

__all__ = ["Threshold", "horizon_for"]


@attrs.frozen(kw_only=True)
class ThresholdConfig:
    """Table ``[controller.threshold]``.

    Attributes:
        confidence_threshold: A Predict phase needs at least this confidence.
        max_horizon: Longest horizon, in optimizer steps.
        min_horizon: Shortest horizon; never above `max_horizon`.
        full_steps: Real steps of a Full phase between cycles.
        correct_steps: Real steps of a Correct phase; the verdict falls at its end.
    """

    confidence_threshold: float = attrs.field(default=0.7, validator=between(0.0, 1.0))
    max_horizon: int = attrs.field(default=80, validator=between(1))
    min_horizon: int = attrs.field(default=10, validator=between(1))
    full_steps: int = attrs.field(default=20, validator=between(1))
    correct_steps: int = attrs.field(default=10, validator=between(1))


def horizon_for(confidence: float, consecutive: int, *, low: int, high: int) -> int:
    """Horizon of the reference design (F7).

    ``H0 = floor(H_max c^2)``, ``H = floor(H0 (1 - min(0.1 k, 0.5)))`` for the k-th Predict phase in a row,
    clamped to ``[low, H_max]``.

    Args:
        confidence: In [0, 1].
        consecutive: Predict phases in a row before this one.
        low: Shortest horizon; taken as `high` where it is longer.
        high: Longest horizon.

    Returns:
        Optimizer steps.

    Example:
        >>> horizon_for(0.9, 0, low=10, high=80), horizon_for(0.9, 3, low=10, high=80)
        (64, 44)
    """
    first = math.floor(high * confidence * confidence)
    horizon = math.floor(first * (1.0 - min(0.1 * consecutive, 0.5)))
    return max(min(low, high), min(horizon, high))


class Threshold:
    """Full -> Predict where the path is straight enough, then Correct; the horizon grows with confidence.

    Example:
        >>> Threshold().config.max_horizon
        80
    """

    name: ClassVar[str] = "threshold"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"window-means", "straightness"})
    Config: ClassVar[type] = ThresholdConfig

    def __init__(self, config: ThresholdConfig | None = None) -> None:
        self.config = config or ThresholdConfig()

    def choose(self, state: EngineState) -> Action:
        """Gate on confidence; Predict is always followed by Correct."""
        c = self.config
        if state.phase is Phase.PREDICT:
            return Action(Phase.CORRECT, c.correct_steps, "Correct follows Predict")
        if not state.may_predict:
            return Action(Phase.FULL, c.full_steps, state.why_not or "Predict is not allowed")
        threshold = c.confidence_threshold + state.raised_threshold
        if state.confidence < threshold:
            reason = f"confidence {state.confidence:.3f} below {threshold:g}"
            return Action(Phase.FULL, c.full_steps, reason)
        if not state.predictor_ready.get(state.default_predictor, False):
            return Action(Phase.FULL, c.full_steps, f"predictor {state.default_predictor!r} is not ready")
        horizon = horizon_for(
            state.confidence, state.consecutive_predicts, low=c.min_horizon, high=c.max_horizon
        )
        return Action(
            Phase.PREDICT,
            0,
            f"confidence {state.confidence:.3f}, horizon {horizon}",
            predictor=state.default_predictor,
            horizon=float(horizon),
            settle=c.correct_steps,
        )

    def proceed(self, state: EngineState) -> bool:
        """Go on while the gate would still open."""
        return state.confidence >= self.config.confidence_threshold + state.raised_threshold

    def feedback(self, outcome: Outcome) -> None:
        """The rule has no memory."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
