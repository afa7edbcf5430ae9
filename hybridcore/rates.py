"""One learning rate, several reasons to change it: recovery and tuning each own a factor (F40, F69)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from hybridcore.protocols import Adapter, RateAdapter

__all__ = ["RateControl"]


class RateControl:
    """Keeps the optimizer's learning rate at the user's own, times the product of all owners' factors.

    Args:
        adapter: The model; without the capability ``"learning-rate"`` nothing ever changes.

    Attributes:
        applied: The product that the optimizer has now.

    Example:
        >>> from hybridcore.reference import quadratic
        >>> adapter = quadratic(seed=0)
        >>> rates = RateControl(adapter)
        >>> rates.set("recovery", 0.5)
        >>> rates.set("autotune", 3.0)
        >>> adapter.learning_rate
        0.015
    """

    def __init__(self, adapter: Adapter) -> None:
        able = "learning-rate" in adapter.capabilities
        self._adapter = cast(RateAdapter, adapter) if able else None
        self._factors: dict[str, float] = {}
        self.applied = 1.0

    @property
    def available(self) -> bool:
        """Whether the adapter lets the rate be changed."""
        return self._adapter is not None

    def factor(self, owner: str) -> float:
        """An owner's factor; 1 unless set."""
        return self._factors.get(owner, 1.0)

    def set(self, owner: str, factor: float) -> None:
        """Set an owner's factor."""
        self._factors[owner] = factor
        self._apply()

    def restored(self, applied: float) -> None:
        """A snapshot came back that was taken while the product was `applied`."""
        self.applied = applied
        self._apply()

    def _apply(self) -> None:
        if self._adapter is None:
            return
        wanted = 1.0
        for factor in self._factors.values():
            wanted *= factor
        if wanted != self.applied:
            self._adapter.scale_learning_rate(wanted / self.applied)
            self.applied = wanted

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {"factors": dict(self._factors), "applied": self.applied}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave; the optimizer's rate is taken to be the one of that time."""
        self._factors, self.applied = dict(state["factors"]), float(state["applied"])
