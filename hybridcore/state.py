"""Statistics of the run and the normalised features made of them (F9, F10)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.protocols import Action, Phase, Rollout, StepRecord

__all__ = ["FEATURE_NAMES", "EngineState", "Statistics"]

EMA_RATES = (1 / 4, 1 / 16, 1 / 64)
"""Rates of the three loss averages (F10)."""

FEATURE_NAMES: tuple[str, ...] = (
    "loss",
    "loss_mean",
    "loss_std",
    "loss_min",
    "loss_max",
    "loss_change",
    "loss_ratio",
    "progress",
    "grad_norm",
    "grad_norm_mean",
    "grad_norm_std",
    "grad_norm_min",
    "grad_norm_max",
    "grad_norm_log10",
    "grad_norm_over_mean",
    "grad_norm_noise",
    "m_mean",
    "m_std",
    "v_mean",
    "v_std",
    "learning_rate_log10",
    "learning_rate_over_peak",
    "straightness",
    "phase",
    "phase_progress",
    "loss_ema_4",
    "loss_ema_16",
    "loss_ema_64",
)
"""Names of the features in order. All are free of the loss's and the gradient's scale."""


def _squash(value: float) -> float:
    """Map a ratio or a z-score into (-1, 1), keeping order; non-finite values become 0."""
    return math.tanh(value / 3.0) if math.isfinite(value) else 0.0


class Statistics:
    """Rings of recent losses and gradient norms, and averages of the loss at three rates.

    `observe` costs a few microseconds; everything else is worked out when asked for.

    Example:
        >>> stats = Statistics()
        >>> for step in range(1, 5):
        ...     stats.observe(StepRecord(step, Phase.FULL, 2.0, 1.0, 0.1, 0.01))
        >>> stats.loss_ema(4)
        2.0
    """

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=256)
        self.grad_norms: deque[float] = deque(maxlen=64)
        self._emas: list[float] = []
        self._deviation = math.nan
        self.first_loss = math.nan
        self.learning_rate = math.nan
        self.peak_learning_rate = 0.0
        self.rise_began = self.rise_ended = 0
        self.steps = 0
        self.seconds_per_step = math.nan

    def observe(self, record: StepRecord) -> None:
        """Take in one real step that changed the weights."""
        loss = record.loss
        if not self._emas:
            self._emas = [loss] * len(EMA_RATES)
            self.first_loss = loss
            self._deviation = 0.0
            self.seconds_per_step = record.seconds
        else:
            step = abs(loss - self._emas[1])
            self._deviation += EMA_RATES[1] * (step - self._deviation)
            fast, middle, slow = self._emas
            a, b, c = EMA_RATES
            self._emas = [fast + a * (loss - fast), middle + b * (loss - middle), slow + c * (loss - slow)]
            self.seconds_per_step += 0.05 * (record.seconds - self.seconds_per_step)
        self.losses.append(loss)
        if math.isfinite(record.grad_norm):
            self.grad_norms.append(record.grad_norm)
        self.learning_rate = record.learning_rate
        if record.learning_rate > self.peak_learning_rate * (1.0 + 1e-6):
            self._raise_peak(record.learning_rate)
        self.steps += 1

    def _raise_peak(self, rate: float) -> None:
        if self.steps - self.rise_ended > max(1, self.rise_ended - self.rise_began):
            self.rise_began = self.steps
        self.rise_ended = self.steps
        self.peak_learning_rate = rate

    @property
    def rising(self) -> bool:
        """Whether the learning rate rises, step by step, to what it never was, or stopped to do so lately.

        Lately is for as many steps as it rose.
        """
        return self.steps - self.rise_ended <= self.rise_ended - self.rise_began > 0

    def loss_ema(self, memory: int) -> float:
        """Exponential average of the loss with rate ``1 / memory``; memory is 4, 16 or 64.

        ``e <- e + (loss - e) / memory``, started at the first loss.
        """
        rates = [round(1 / a) for a in EMA_RATES]
        return self._emas[rates.index(memory)] if self._emas else math.nan

    @property
    def loss_deviation(self) -> float:
        """Mean absolute deviation of the loss from its average over about 16 steps."""
        return self._deviation

    def features(
        self,
        *,
        phase: Phase,
        phase_progress: float,
        progress: float,
        straightness: float,
        moments: dict[str, float],
    ) -> NDArray[np.float64]:
        """All features, shape ``(len(FEATURE_NAMES),)``, each in about [-2, 2].

        Losses are z-scores against the last 256, gradient norms are relative to their mean, moments to the
        gradient's size: multiplying the loss by a constant changes nothing (F9).

        Args:
            phase: Current phase.
            phase_progress: Share of the phase that is over.
            progress: Share of the run that is over; 0 where the length is not known.
            straightness: Cosine of successive displacements; NaN while unknown.
            moments: The adapter's `moments`.
        """
        losses = np.asarray(self.losses or [0.0])
        norms = np.asarray(self.grad_norms or [0.0])
        mean, std = float(losses.mean()), float(losses.std())
        scale = max(std, 1e-12 * abs(mean), 1e-300)

        def z(value: float) -> float:
            return _squash((value - mean) / scale)

        last, before = losses[-16:], losses[-32:-16]
        former = float(before.mean()) if before.size else 0.0
        change = (float(last.mean()) - former) / scale if before.size else 0.0
        span = max(abs(self.first_loss), 1e-300)
        g_mean, g_std = float(norms.mean()), float(norms.std())
        g_scale = max(g_mean, 1e-300)
        m_scale = max(abs(moments.get("m_std", 0.0)) + abs(moments.get("m_mean", 0.0)), 1e-300)
        v_scale = max(abs(moments.get("v_std", 0.0)) + abs(moments.get("v_mean", 0.0)), 1e-300)
        values = (
            z(float(losses[-1])),
            _squash(3.0 * (mean / span - 1.0)),
            _squash(3.0 * std / max(abs(mean), 1e-300)),
            z(float(losses.min())),
            z(float(losses.max())),
            _squash(change),
            _squash(3.0 * (float(last.mean()) / former - 1.0)) if former else 0.0,
            progress,
            _squash((float(norms[-1]) - g_mean) / max(g_std, 1e-12 * g_scale, 1e-300)),
            _squash(math.log(g_scale / max(float(norms[0]), 1e-300))) if norms[0] > 0 else 0.0,
            _squash(3.0 * g_std / g_scale),
            float(norms.min()) / g_scale,
            _squash(3.0 * (float(norms.max()) / g_scale - 1.0)),
            _squash(math.log10(max(float(norms[-1]), 1e-300) / g_scale)),
            _squash(3.0 * (float(norms[-1]) / g_scale - 1.0)),
            _squash(g_std / max(math.sqrt(norms.size) * g_scale, 1e-300)),
            moments.get("m_mean", 0.0) / m_scale,
            _squash(math.log1p(moments.get("m_std", 0.0) / max(g_scale, 1e-300))),
            moments.get("v_mean", 0.0) / v_scale,
            _squash(math.log1p(math.sqrt(max(moments.get("v_std", 0.0), 0.0)) / max(g_scale, 1e-300))),
            _squash(math.log10(max(self.learning_rate, 1e-300)) / 2.0 + 1.5),
            self.learning_rate / self.peak_learning_rate if self.peak_learning_rate > 0 else 0.0,
            straightness if math.isfinite(straightness) else 0.0,
            list(Phase).index(phase) / 3.0,
            phase_progress,
            z(self.loss_ema(4)),
            z(self.loss_ema(16)),
            z(self.loss_ema(64)),
        )
        return np.asarray(values, dtype=np.float64)

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {
            "losses": list(self.losses),
            "grad_norms": list(self.grad_norms),
            "emas": list(self._emas),
            "deviation": self._deviation,
            "first_loss": self.first_loss,
            "learning_rate": self.learning_rate,
            "peak_learning_rate": self.peak_learning_rate,
            "rise_began": self.rise_began,
            "rise_ended": self.rise_ended,
            "steps": self.steps,
            "seconds_per_step": self.seconds_per_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.losses = deque(state["losses"], maxlen=256)
        self.grad_norms = deque(state["grad_norms"], maxlen=64)
        self._emas = list(state["emas"])
        self._deviation = state["deviation"]
        self.first_loss = state["first_loss"]
        self.learning_rate = state["learning_rate"]
        self.peak_learning_rate = state["peak_learning_rate"]
        self.rise_began, self.rise_ended = int(state["rise_began"]), int(state["rise_ended"])
        self.steps = int(state["steps"])
        self.seconds_per_step = state["seconds_per_step"]


@attrs.define(slots=True)
class EngineState:
    """What a controller sees at a phase boundary.

    Attributes:
        step: Real steps taken so far.
        phase: Phase that just ended.
        consecutive_predicts: Predict phases since the last Full phase.
        may_predict: Whether the rules, the back-off and the budget allow a Predict phase now.
        why_not: The rule that forbids it, or None.
        confidence: In [0, 1]: how straight the recent path was; 0 while unknown.
        straightness: The raw cosine; NaN while unknown.
        reach: Multiple of the user's step that the path supports; NaN while unknown or not asked for.
        reach_growth: Exponent with which it lately grew with the steps; NaN while unknown.
        alignments: Newest cosines between an update's fresh part and the update before, the newest last.
        aligned_steps: How many there were so far.
        next_sample: Real step whose update `reach` wants to see next.
        trial_steps_left: Real steps until the open trial's verdict; 0 without an open trial.
        curve_known: Whether a trial that opens now could say how fast the loss falls without it.
        learning_rate: Now.
        peak_learning_rate: Highest so far.
        momentum_memory: Steps the optimizer's first moment remembers.
        normalised: Whether the optimizer divides its updates by the gradient's size, like Adam.
        forecast: Gives the training losses that follow an action, by the dynamics model; None without one.
        statistics: Losses and gradient norms.
        predictor_ready: By registry name, whether it could predict now.
        default_predictor: Registry name of the predictor that the configuration names.
        window: Steps per history window.
        raised_threshold: Confidence asked for on top of a controller's own threshold after a warning.
    """

    step: int
    phase: Phase
    consecutive_predicts: int
    may_predict: bool
    why_not: str | None
    confidence: float
    straightness: float
    reach: float
    next_sample: int
    trial_steps_left: int
    learning_rate: float
    peak_learning_rate: float
    momentum_memory: float
    normalised: bool
    forecast: Callable[[Action, int], Rollout] | None
    statistics: Statistics
    predictor_ready: dict[str, bool]
    default_predictor: str
    window: int
    raised_threshold: float = 0.0
    curve_known: bool = True
    reach_growth: float = math.nan
    alignments: tuple[float, ...] = ()
    aligned_steps: int = 0
