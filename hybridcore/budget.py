"""What trying may cost: a share of the run, more where it has paid, and a pause after failures (F83)."""

from __future__ import annotations

import math
from typing import Any

from hybridcore.config import BudgetConfig

__all__ = ["OVERSPENT", "Budget"]

OVERSPENT = "the overhead budget is spent"
"""Why nothing is predicted while `Budget.allows` says no."""


class Budget:
    """Books costs and credit in step equivalents and in seconds.

    Spending is allowed while ``spent <= share * total + credit_share * credit + grace`` holds in both units
    (in steps alone without ``count_seconds``). Every cost is either useful (`total`) or `spent`.

    Args:
        config: Shares and pauses.

    Example:
        >>> budget = Budget(BudgetConfig(share=0.1, grace_steps=0.0))
        >>> for _ in range(10):
        ...     budget.run(steps=1.0, seconds=0.5)
        >>> budget.allows(steps=1.0, seconds=0.5)
        True
        >>> budget.spend(steps=1.0, seconds=0.5)
        >>> budget.allows(steps=1.0, seconds=0.5)
        False
    """

    def __init__(self, config: BudgetConfig) -> None:
        self._config = config
        self.total_steps = self.total_seconds = 0.0
        self.spent_steps = self.spent_seconds = 0.0
        self.credit_steps = self.credit_seconds = 0.0
        self.failures = 0
        self.resume_at = 0

    def run(self, steps: float, seconds: float) -> None:
        """Book useful cost."""
        self.total_steps += steps
        self.total_seconds += seconds

    def spend(self, steps: float, seconds: float) -> None:
        """Book the cost of a probe or of a restore."""
        self.spent_steps += steps
        self.spent_seconds += seconds

    def lose(self, steps: float, seconds: float) -> None:
        """Book useful cost as spent after all: the real steps of a failed trial."""
        self.run(-steps, -seconds)
        self.spend(steps, seconds)

    def earn(self, steps: float, seconds: float) -> None:
        """Book verified credit."""
        self.credit_steps += max(0.0, steps)
        self.credit_seconds += max(0.0, seconds)

    def allows(self, steps: float, seconds: float) -> bool:
        """Whether a further expense of this size stays inside the budget."""
        c = self._config
        in_steps = c.share * self.total_steps + c.credit_share * self.credit_steps + c.grace_steps
        if self.spent_steps + steps > in_steps:
            return False
        if not c.count_seconds:
            return True
        per_step = self.total_seconds / self.total_steps if self.total_steps > 0.0 else 0.0
        in_seconds = (
            c.share * self.total_seconds + c.credit_share * self.credit_seconds + c.grace_steps * per_step
        )
        return self.spent_seconds + seconds <= in_seconds

    def pause(self, failures: int) -> int:
        """Real steps of pause after this many earlier failures in a row."""
        c = self._config
        try:
            grown = c.backoff_steps * c.backoff_factor**failures
        except OverflowError:
            grown = math.inf if c.backoff_steps else 0.0
        return int(min(grown, c.max_backoff_steps))

    def failed(self, step: int) -> int:
        """Book a failure at a real step; the pause doubles (by `backoff_factor`) with each in a row.

        Returns:
            Real step at which trying may resume.
        """
        self.resume_at = step + self.pause(self.failures)
        self.failures += 1
        return self.resume_at

    def succeeded(self) -> None:
        """End a row of failures."""
        self.failures = 0
        self.resume_at = 0

    @property
    def overhead_share(self) -> float:
        """Seconds spent over all seconds of the run, between 0 and 1."""
        whole = self.total_seconds + self.spent_seconds
        return self.spent_seconds / whole if whole > 0.0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for key in self.state_dict():
            setattr(self, key, state[key])
