"""Monitor `non-finite`: a loss or gradient that is no number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from hybridcore.protocols import API_VERSION, Signal, SignalLevel, StepRecord

__all__ = ["NonFinite"]


class NonFinite:
    """Critical at the first loss or gradient that is NaN or infinite; looks at every step (F32).

    Weights that are not finite show in the next loss. A gradient norm of NaN alone means that the adapter
    does not measure it, unless the step was skipped.

    Example:
        >>> from hybridcore.protocols import Phase
        >>> monitor = NonFinite()
        >>> record = StepRecord(7, Phase.FULL, float("inf"), 1.0, 0.1, 0.01)
        >>> monitor.check(record).level.word
        'critical'
    """

    name: ClassVar[str] = "non-finite"
    api_version: ClassVar[int] = API_VERSION
    every_step: ClassVar[bool] = True

    def observe(self, record: StepRecord) -> None:
        """Nothing is remembered."""

    def check(self, record: StepRecord) -> Signal | None:
        """Critical, or None."""
        loss, norm = record.loss, record.grad_norm
        if math.isfinite(loss) and not record.skipped and norm != math.inf:
            return None
        return Signal(SignalLevel.CRITICAL, self.name, norm if math.isfinite(loss) else loss, math.inf)

    def reset(self) -> None:
        """Nothing is remembered."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
