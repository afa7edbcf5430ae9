"""Controller `fixed`: the same horizon every cycle, wherever the rules allow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from hybridcore.config import between
from hybridcore.protocols import API_VERSION, Action, Outcome, Phase
from hybridcore.state import EngineState

__all__ = ["Fixed"]


@attrs.frozen(kw_only=True)
class FixedConfig:
    """Table ``[controller.fixed]``.

    Attributes:
        horizon: Optimizer steps of every jump.
        full_steps: Real steps of a Full phase between cycles.
        correct_steps: Real steps of a Correct phase; the verdict falls at its end.
    """

    horizon: float = attrs.field(default=20.0, validator=between(0.0, low_open=True))
    full_steps: int = attrs.field(default=20, validator=between(1))
    correct_steps: int = attrs.field(default=10, validator=between(1))


class Fixed:
    """Full, Predict, Correct in turn, without a gate; for controls and comparisons.

    Example:
        >>> Fixed().config.horizon
        20.0
    """

    name: ClassVar[str] = "fixed"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"window-means"})
    Config: ClassVar[type] = FixedConfig

    def __init__(self, config: FixedConfig | None = None) -> None:
        self.config = config or FixedConfig()

    def choose(self, state: EngineState) -> Action:
        """Predict whenever the rules allow it and the predictor is ready."""
        c = self.config
        if state.phase is Phase.PREDICT:
            return Action(Phase.CORRECT, c.correct_steps, "Correct follows Predict")
        name = state.default_predictor
        if not state.may_predict or not state.predictor_ready.get(name, False):
            return Action(Phase.FULL, c.full_steps, state.why_not or f"predictor {name!r} is not ready")
        return Action(
            Phase.PREDICT,
            0,
            f"fixed horizon {c.horizon:g}",
            predictor=name,
            horizon=c.horizon,
            settle=c.correct_steps,
        )

    def proceed(self, state: EngineState) -> bool:
        """Always."""
        return True

    def feedback(self, outcome: Outcome) -> None:
        """Nothing is learned."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
