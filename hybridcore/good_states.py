"""Snapshots to roll back to, trusted only once later steps have proven them good (F40)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from hybridcore.checkpoint.attributes import put, take
from hybridcore.config import RecoveryConfig
from hybridcore.errors import MemoryBudgetError
from hybridcore.protocols import Adapter, Snapshot

__all__ = ["GoodState", "GoodStates"]

logger = logging.getLogger("hybridcore")

_STATE = ("enabled", "proven", "candidate", "next_at")


@attrs.frozen
class GoodState:
    """One moment to go back to.

    Attributes:
        snapshot: The adapter's.
        step: Real step after which it was taken.
        rate: Product of the learning-rate factors at that time.
        notes: What else must go back with it.
    """

    snapshot: Snapshot
    step: int
    rate: float
    notes: Any


class GoodStates:
    """Holds one proven state and one candidate.

    Args:
        adapter: The model.
        config: How often, and how long until proven.
        reserve: Called with the bytes that snapshots take before one is taken.

    Attributes:
        proven: The latest state that is known to be good, or None.
        candidate: A newer one that is not known to be good yet, or None.
        agree: Whether something is so on all processes of the run.
    """

    def __init__(self, adapter: Adapter, config: RecoveryConfig, reserve: Callable[[int], None]) -> None:
        self._adapter, self._config, self._reserve = adapter, config, reserve
        self.enabled = config.snapshot_every > 0
        self.proven: GoodState | None = None
        self.candidate: GoodState | None = None
        self.next_at = 0
        self.agree: Callable[[bool], bool] = bool

    def begin(self, step: int, rate: float, notes: Callable[[], Any]) -> None:
        """Take the state before the first step, which needs no proof."""
        self.take(step, rate, notes)
        self.proven, self.candidate = self.candidate, None

    def take(self, step: int, rate: float, notes: Callable[[], Any]) -> bool:
        """Take a candidate.

        Returns:
            False where the weights are not finite, so that there is nothing to keep.
        """
        if not self.enabled:
            return True
        try:
            self._reserve(self.nbytes())
        except MemoryBudgetError as error:
            self.give_up(error)
            return True
        self.next_at = step + self._config.snapshot_every
        if not self.weights_are_finite():
            return False
        self.candidate = GoodState(self._adapter.snapshot(), step, rate, notes())
        return True

    def weights_are_finite(self) -> bool:
        """Whether the model's weights are numbers, all of them; one pass over the weights."""
        norm = self._adapter.xp.linalg.vector_norm
        return self.agree(all(math.isfinite(float(norm(bucket))) for bucket in self._adapter.read_params()))

    def give_up(self, error: MemoryBudgetError) -> None:
        """Let all states go, for lack of memory."""
        if self.enabled:
            self.enabled, self.proven, self.candidate = False, None, None
            logger.warning("no state is kept to roll back to: %s", error)

    def nbytes(self) -> int:
        """Bytes of both states."""
        return 2 * self._adapter.snapshot_nbytes()

    def trust(self, step: int) -> None:
        """Hear that all is well at a step: the candidate becomes the proven state when it is old enough."""
        candidate = self.candidate
        if candidate is not None and step - candidate.step >= self._config.prove_after:
            self.proven, self.candidate = candidate, None

    def doubt(self, step: int) -> None:
        """Hear of a warning: the candidate may be damaged already; the next one is taken after a while."""
        self.candidate = None
        self.next_at = max(self.next_at, step + self._config.prove_after)

    def undone(self, step: int) -> None:
        """Hear that the run went back to a real step: a candidate of a later one is not trusted any more."""
        if self.candidate is not None and self.candidate.step > step:
            self.candidate = None

    @property
    def due(self) -> bool:
        """Whether a candidate may be taken; not while one waits for its proof."""
        return self.enabled and self.candidate is None

    def state_dict(self) -> dict[str, Any]:
        """Both states and when the next one is due."""
        return take(self, _STATE)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        put(self, _STATE, state)
