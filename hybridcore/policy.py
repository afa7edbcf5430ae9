"""Which recovery action answers which signal; a signal that comes again is answered more firmly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridcore.config import RecoveryConfig
from hybridcore.errors import RecoveryAction
from hybridcore.protocols import Signal, SignalLevel

__all__ = ["ANY", "DEFAULT_POLICY", "Policy"]

ANY = "*"
"""Row of the policy for monitors without one of their own."""

_A = RecoveryAction
Ladders = Mapping[str, tuple[RecoveryAction, ...]]

DEFAULT_POLICY: Mapping[str, Ladders] = {
    ANY: {
        "caution": (_A.CONTINUE,),
        "warning": (_A.REDUCE_RATIO, _A.FORCE_FULL),
        "critical": (_A.SKIP_BATCH, _A.ROLLBACK),
    },
    "non-finite": {"critical": (_A.SKIP_BATCH,) * 10 + (_A.ROLLBACK,)},
    "prediction-error": {
        "warning": (_A.REDUCE_RATIO, _A.RAISE_THRESHOLD, _A.RESET_PREDICTOR),
        "critical": (_A.RESET_PREDICTOR, _A.FORCE_FULL),
    },
    "oscillation": {"warning": (_A.RAISE_THRESHOLD, _A.FORCE_FULL)},
}
"""Actions by monitor and level where the configuration says nothing; missing levels are those of `ANY`."""


class Policy:
    """Looks up the action for each signal and remembers how often it came.

    Args:
        config: The user's rows and how soon signals are forgotten.

    Example:
        >>> policy = Policy(RecoveryConfig())
        >>> signal = Signal(SignalLevel.CRITICAL, "non-finite", float("inf"), 0.0)
        >>> [policy.action(signal, step).value for step in range(11)][9:]
        ['skip-batch', 'roll-back-and-retry']
    """

    def __init__(self, config: RecoveryConfig) -> None:
        self._config = config
        self._seen: dict[str, int] = {}
        self.latest = 0

    def ladder(self, signal: Signal) -> tuple[RecoveryAction, ...]:
        """Actions for a first, second, third ... signal of this monitor and level."""
        level = signal.level.word
        for name in (signal.name, ANY):
            own = self._config.policy.get(name, {})
            if level in own:
                return tuple(RecoveryAction(action) for action in own[level])
            if level in DEFAULT_POLICY.get(name, {}):
                return DEFAULT_POLICY[name][level]
        raise AssertionError("the default policy names every level")

    def action(self, signal: Signal, step: int) -> RecoveryAction:
        """The action for a signal at a real step; counts it."""
        if step - self.latest > self._config.forget_after:
            self._seen.clear()
        ladder, key = self.ladder(signal), f"{signal.name}.{signal.level.word}"
        count = self._seen.get(key, 0)
        if signal.level > SignalLevel.CAUTION:
            self.latest = step
        self._seen[key] = count + 1
        return ladder[min(count, len(ladder) - 1)]

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {"seen": dict(self._seen), "latest": self.latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._seen, self.latest = dict(state["seen"]), int(state["latest"])
