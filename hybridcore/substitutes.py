"""What takes the place of a plugin that was dropped: it trains, and predicts nothing (F42)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hybridcore.protocols import API_VERSION, Action, Outcome, Phase, Rollout
from hybridcore.state import EngineState

__all__ = ["OnlyTrains", "no_forecast"]

_LENGTH = 100
"""Real steps of a Full phase; forced blocks and rollbacks end one early, so that it only bounds the log."""


class OnlyTrains:
    """Controller that ends an open trial as it was meant to end, and then asks for Full phases alone.

    Example:
        >>> OnlyTrains().name
        'only-trains'
    """

    name: ClassVar[str] = "only-trains"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset()

    def choose(self, state: EngineState) -> Action:
        """Full, while the history rests; Correct where a change was just applied."""
        left = state.trial_steps_left
        if state.phase is Phase.PREDICT:
            return Action(Phase.CORRECT, max(1, left), "Correct follows Predict", observe=True)
        if left:
            return Action(Phase.FULL, left, "the open trial goes on", observe=True)
        return Action(Phase.FULL, _LENGTH, "the controller was dropped", observe=False)

    def proceed(self, state: EngineState) -> bool:
        """A pending change ends here."""
        return False

    def feedback(self, outcome: Outcome) -> None:
        """Nothing is learned."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def no_forecast(ticks: int) -> Rollout:
    """A forecast that says nothing, with no confidence.

    Args:
        ticks: Observations ahead.
    """
    nothing = np.zeros(ticks)
    return Rollout(nothing, nothing, nothing, nothing, 0.0)
