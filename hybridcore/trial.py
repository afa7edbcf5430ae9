"""An open trial and what it is compared with, as plain records."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import VerdictConfig
from hybridcore.jumps import Jump
from hybridcore.protocols import Outcome, Snapshot
from hybridcore.verdict import Reference, Verdict

__all__ = ["Point", "Trial"]


@attrs.define
class Trial:
    """An open trial.

    Attributes:
        snapshot: State before the first jump.
        step: Real step at which it opened.
        predictor: Who proposed the jumps.
        horizon: Horizon of one jump.
        settle: Real steps until the verdict.
        by: ``"probe"`` or ``"guard"``.
        reference: The curve before; None without probes.
        statistics: State of the run's statistics at the opening, restored on failure.
        loss_level: Average loss at the opening.
        loss_deviation: Its mean absolute deviation.
        loss_peak: Largest loss of the last 32 steps before it; late in training single hard examples make
            tails that a deviation does not tell.
        seconds: Seconds of real steps when it opened.
        progress: Real steps at which the reference's losses were current; probes do not count.
        covered: Optimizer steps predicted until then.
        continuous: The jumps follow each real step.
        reach: State of the reach at the opening.
        previous: The continuous trial that ended where this one began, or None.
        first_jump: Its first jump, whose caps hold for the rest of a continuous trial.
        before: Probe losses just before the first jump, for the tentative test; None without one.
        strikes: Losses above the guard so far.
        skipped: Real steps so far that changed no weights.
        jumps: Jumps applied so far.
        predicted: Optimizer steps that they stand for, after all caps.
        real_steps: Real steps so far.
        rate: Factor on the user's learning rate at the opening.
        expected_loss: What the latest prediction promised, or, without a promise, no rise.
    """

    snapshot: Snapshot
    step: int
    predictor: str
    horizon: float
    settle: int
    by: str
    reference: Reference | None
    statistics: dict[str, Any]
    loss_level: float
    loss_deviation: float
    seconds: float
    progress: float
    covered: float = 0.0
    continuous: bool = False
    reach: dict[str, Any] | None = None
    previous: Trial | None = None
    first_jump: Jump | None = None
    before: NDArray[np.float64] | None = None
    strikes: int = 0
    skipped: int = 0
    loss_peak: float = -math.inf
    jumps: int = 0
    predicted: float = 0.0
    real_steps: int = 0
    rate: float = 1.0
    expected_loss: float = math.nan

    def guard_limit(self, config: VerdictConfig) -> float:
        """Training loss above which the trial fails at once."""
        if not math.isfinite(self.loss_level):
            return math.inf
        by_noise = self.loss_level + config.guard_z * self.loss_deviation
        by_factor = self.loss_level + (config.guard_factor - 1.0) * abs(self.loss_level)
        return max(by_noise, by_factor, self.loss_peak)

    def outcome(
        self,
        *,
        kept: bool,
        reason: str,
        straightness: float,
        verdict: Verdict | None = None,
        seconds_per_step: float = 0.0,
    ) -> Outcome:
        """What the controller hears of it."""
        credit = verdict.credit_steps if verdict is not None and kept else 0.0
        return Outcome(
            kept=kept,
            predictor=self.predictor,
            horizon=self.horizon,
            jumps=self.jumps,
            real_steps=self.real_steps,
            gain=verdict.gain if verdict is not None else math.nan,
            gain_error=verdict.error if verdict is not None else math.nan,
            credit_steps=credit,
            credit_seconds=credit * seconds_per_step,
            straightness=straightness,
            reason=reason,
            behind_steps=verdict.behind_steps if verdict is not None and kept else 0.0,
            falling=verdict is not None and verdict.falling,
            overfitted=verdict is not None and verdict.overfitted,
        )


@attrs.frozen
class Point:
    """A place on the loss curve.

    Attributes:
        losses: Per-example probe losses of averaged weights, shape (n,).
        progress: Real steps at which they were current; probes do not count.
        covered: Optimizer steps predicted until then.
    """

    losses: NDArray[np.float64]
    progress: float
    covered: float
