"""The state machine of Warmup, Full, Predict and Correct; it enforces the rules whatever is asked for."""

from __future__ import annotations

from typing import Any

from hybridcore.config import PhasesConfig
from hybridcore.errors import PhaseTransitionError
from hybridcore.protocols import Phase

__all__ = ["TRANSITIONS", "PhaseMachine"]

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.WARMUP: frozenset({Phase.FULL}),
    Phase.FULL: frozenset({Phase.PREDICT, Phase.FULL, Phase.CORRECT}),
    Phase.PREDICT: frozenset({Phase.CORRECT, Phase.FULL}),
    Phase.CORRECT: frozenset({Phase.FULL, Phase.PREDICT}),
}
"""Phases that may follow each phase (F2)."""


class PhaseMachine:
    """Current phase, its length in batches, and the rules between phases.

    Args:
        config: Lengths and caps.

    Attributes:
        phase: The current phase.
        length: Batches that it lasts.
        done: Batches of it that are over.
        consecutive_predicts: Predict phases since the last Full phase.

    Example:
        >>> machine = PhaseMachine(PhasesConfig(warmup_steps=1, full_steps=1))
        >>> machine.tick()
        True
        >>> machine.permitted(Phase.PREDICT)
        (<Phase.FULL: 'full'>, 'the mandatory Full block comes before the first Predict')
    """

    def __init__(self, config: PhasesConfig) -> None:
        self._config = config
        self.phase = Phase.WARMUP
        self.length = config.warmup_steps
        self.done = 0
        self.consecutive_predicts = 0
        self._full_steps = 0
        self._forced = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the current phase has lasted its length."""
        return self.done >= self.length

    @property
    def mandatory_full_left(self) -> int:
        """Full steps still owed before the first Predict (F4)."""
        return max(0, self._config.full_steps - self._full_steps)

    @property
    def forced_full_left(self) -> int:
        """Steps of a forced Full block still to come (F8)."""
        return self._forced

    def tick(self) -> bool:
        """Count one batch in the current phase.

        Returns:
            Whether the phase is over.
        """
        self.done += 1
        if self.phase is Phase.FULL:
            self._full_steps += 1
            self._forced = max(0, self._forced - 1)
        return self.done >= self.length

    def permitted(self, wanted: Phase) -> tuple[Phase, str | None]:
        """Phase that the rules make of a wanted one.

        Args:
            wanted: What a controller asks for at a boundary.

        Returns:
            The phase to enter, and the rule that changed it or None.

        Raises:
            PhaseTransitionError: The wanted phase may never follow the current one, under any rule.
        """
        if self._forced:
            return Phase.FULL, "a Full block is forced"
        if self.phase is Phase.WARMUP and wanted is not Phase.FULL:
            return Phase.FULL, "the mandatory Full block comes before the first Predict"
        if wanted is Phase.PREDICT:
            if self.mandatory_full_left:
                return Phase.FULL, "the mandatory Full block comes before the first Predict"
            if self.consecutive_predicts >= self._config.max_consecutive_predicts:
                return Phase.FULL, f"{self.consecutive_predicts} Predict phases in a row are the cap"
        self._require(wanted)
        return wanted, None

    def enter(self, phase: Phase, length: int) -> None:
        """Enter a phase for `length` batches.

        Raises:
            PhaseTransitionError: It may not follow the current phase; nothing changes.
        """
        self._require(phase)
        if phase is Phase.FULL:
            self.consecutive_predicts = 0
            length = max(length, self.mandatory_full_left, self._forced)
        elif phase is Phase.PREDICT:
            self.consecutive_predicts += 1
        self.phase, self.length, self.done = phase, length, 0

    def force_full(self, steps: int) -> None:
        """Make exactly the next `steps` batches Full, whatever is asked for (F8).

        The current phase ends at once.
        """
        if steps < 1:
            raise PhaseTransitionError(
                "a forced Full block needs at least one step", where="force_full", got=steps, expected=">= 1"
            )
        self._forced = steps
        self.phase, self.length, self.done = Phase.FULL, steps, 0
        self.consecutive_predicts = 0

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {
            "phase": self.phase.value,
            "length": self.length,
            "done": self.done,
            "consecutive_predicts": self.consecutive_predicts,
            "full_steps": self._full_steps,
            "forced": self._forced,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.phase = Phase(state["phase"])
        self.length, self.done = int(state["length"]), int(state["done"])
        self.consecutive_predicts = int(state["consecutive_predicts"])
        self._full_steps, self._forced = int(state["full_steps"]), int(state["forced"])

    def _require(self, phase: Phase) -> None:
        if phase not in TRANSITIONS[self.phase]:
            raise PhaseTransitionError(
                f"phase {phase.value!r} may not follow phase {self.phase.value!r}",
                where="phases",
                got=f"{self.phase.value} -> {phase.value}",
                expected=" or ".join(sorted(p.value for p in TRANSITIONS[self.phase])),
                fix="let the controller ask for one of these, or call force_full",
            )
