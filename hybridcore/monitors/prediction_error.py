"""Monitor `prediction-error`: the loss after a prediction is worse than what was promised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from hybridcore.config import between
from hybridcore.protocols import API_VERSION, Signal, SignalLevel, StepRecord

__all__ = ["PredictionError"]


@attrs.frozen(kw_only=True)
class PredictionErrorConfig:
    """Table ``[divergence.prediction-error]``.

    Attributes:
        caution: Relative error that is a caution.
        warning: Relative error that is a warning.
        min_steps: Real steps after a prediction that are averaged before it is judged.
    """

    caution: float = attrs.field(default=0.2, validator=between(0.0, low_open=True))
    warning: float = attrs.field(default=0.5, validator=between(0.0, low_open=True))
    min_steps: int = attrs.field(default=8, validator=between(2))


class PredictionError:
    """Loss above the promised one, relative to it, over the real steps of one prediction (F32, F34).

    A prediction promises the loss that its predictor states, or else that the loss does not rise out of its
    noise. The error
    is the mean excess less two standard errors, so that minibatch noise is none; what turns out better than
    promised never alarms. A promise ends where `expected_loss` changes or is absent.

    Example:
        >>> from hybridcore.protocols import Phase
        >>> monitor = PredictionError()
        >>> for step, loss in enumerate([2.1, 1.9, 2.0, 2.0] * 2):
        ...     record = StepRecord(step, Phase.CORRECT, loss, 1.0, 0.1, 0.01, expected_loss=1.0)
        ...     monitor.observe(record)
        >>> monitor.check(record).level.word
        'warning'
    """

    name: ClassVar[str] = "prediction-error"
    api_version: ClassVar[int] = API_VERSION
    Config: ClassVar[type] = PredictionErrorConfig

    def __init__(self, config: PredictionErrorConfig | None = None) -> None:
        self.config = config or PredictionErrorConfig()
        self.reset()

    def reset(self) -> None:
        """Forget the promise."""
        self._expected = math.nan
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._worst = -math.inf

    def observe(self, record: StepRecord) -> None:
        """Compare one loss with the promise."""
        expected, loss = record.expected_loss, record.loss
        if expected != expected:
            self._expected = math.nan
        if expected != expected or not math.isfinite(loss):
            return
        if expected != self._expected:
            self._expected = expected
            self._count, self._mean, self._squares = 0, 0.0, 0.0
        # Welford's running mean and sum of squares.
        self._count += 1
        step = loss - self._mean
        self._mean += step / self._count
        self._squares += step * (loss - self._mean)
        if self._count >= self.config.min_steps:
            error = math.sqrt(self._squares / (self._count - 1) / self._count)
            excess = self._mean - expected - 2.0 * error
            self._worst = max(self._worst, excess / max(abs(expected), 1e-300))

    def check(self, record: StepRecord) -> Signal | None:
        """The worst since the last check; None where nothing new was promised."""
        worst, self._worst = self._worst, -math.inf
        if worst > self.config.warning:
            return Signal(SignalLevel.WARNING, self.name, worst, self.config.warning)
        if worst > self.config.caution:
            return Signal(SignalLevel.CAUTION, self.name, worst, self.config.caution)
        return None

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {
            "expected": self._expected,
            "moments": [self._count, self._mean, self._squares],
            "worst": self._worst,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._expected, self._worst = state["expected"], state["worst"]
        count, self._mean, self._squares = state["moments"]
        self._count = int(count)
