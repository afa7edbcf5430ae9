"""The delayed judgement of a jump, on window-averaged weights at equal cost (F82)."""

from __future__ import annotations

import math

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import VerdictConfig
from hybridcore.probes import paired_difference

__all__ = ["Reference", "Verdict", "judge", "overfitted", "rate_between", "steepest", "straightened"]

_FEWEST = 5
"""Losses without which they say nothing about the slope."""


@attrs.frozen
class Reference:
    """The loss curve before a jump, extended to any later cost.

    Attributes:
        losses: Per-example losses of the last window mean before the jump, shape (n,).
        rate: Change of those losses per cost unit there, shape (n,); None while unknown.
        cost: Cost units spent when `losses` was current.
        age: Steps of the user's optimizer that the curve had come by then, predicted ones included; infinite
            for a straight continuation.
    """

    losses: NDArray[np.float64]
    rate: NDArray[np.float64] | None
    cost: float
    age: float = math.inf

    @property
    def slope(self) -> float:
        """Mean loss per cost unit; never positive, since a curve that rises by noise is no bar to clear."""
        return min(0.0, float(self.rate.mean())) if self.rate is not None else 0.0

    def at(self, cost: float) -> NDArray[np.float64]:
        """Per-example losses expected at a later cost without the jump.

        Training curves flatten. They are continued as a power of the steps, a straight line where both are
        logarithms (Hestness et al., arXiv:1712.00409); late in a run that is a straight line. A mean loss
        that is not positive has no logarithm: there it is straight over the logarithm of the steps.
        """
        if self.rate is None or self.slope == 0.0:
            return self.losses
        steps = straightened(cost - self.cost, self.age)
        level = float(self.losses.mean())
        if math.isfinite(self.age) and level > 0.0:
            fall = self.slope * steps / level
            steps *= math.expm1(fall) / fall if fall else 1.0
        return self.losses + self.rate * steps

    def doubt(self, cost: float) -> float:
        """How far the mean loss may differ from `at`, since nothing shows how soon the curve will flatten.

        A standard deviation. The fall to come may be anything between none and what is asked, where it
        reaches as far ahead as the curve has come; sooner, as much less as it reaches less far.

        Args:
            cost: As for `at`.
        """
        asked = float(self.losses.mean() - self.at(cost).mean())
        return min(1.0, max(0.0, cost - self.cost) / self.age) * abs(asked) / math.sqrt(12.0)


@attrs.frozen(slots=True)
class Verdict:
    """The judgement of a trial.

    Attributes:
        kept: Whether the jumps stand.
        gain: Reference minus achieved mean loss at equal cost; positive is good.
        error: Its standard error.
        credit_steps: Gain, less one error, in real steps of the reference's slope; 0 unless positive.
        reason: One line.
        falling: Whether the loss is clearly below that before the jump.
        overfitted: Whether held-out losses are clearly above those that were trained on; see `overfitted`.
        behind_steps: Where the trial is kept although it is behind the curve: by how many real steps.
    """

    kept: bool
    gain: float
    error: float
    credit_steps: float
    reason: str
    behind_steps: float = 0.0
    falling: bool = False
    overfitted: bool = False


def judge(
    reference: Reference,
    achieved: NDArray[np.float64],
    cost: float,
    predicted_steps: float,
    config: VerdictConfig,
) -> Verdict:
    """Judge window-averaged weights after a jump against the continued curve before it.

    A trial behind the curve is still kept where its loss is clearly below that before the jump, by
    `least_progress` of what the curve asks for: to restore would give that fall back, and the trial's real
    steps with it. Where less was made of those steps, something is wrong that may last longer than the trial.

    Args:
        reference: The curve before the jump.
        achieved: Per-example losses of the window mean after it, shape (n,).
        cost: Cost units spent when `achieved` was current.
        predicted_steps: Optimizer steps that the trial predicted; bounds the credit.
        config: Confidence.

    Returns:
        The verdict; non-finite losses fail.
    """
    if not np.isfinite(achieved).all():
        return Verdict(False, -math.inf, 0.0, 0.0, "non-finite loss of the averaged weights")
    difference = paired_difference(achieved, reference.at(cost))
    gain, error = -difference.mean, difference.error
    fall = paired_difference(reference.losses, achieved)
    level = gain >= -config.confidence_z * math.hypot(error, reference.doubt(cost))
    falling = fall.mean > config.confidence_z * fall.error
    kept = level or (falling and fall.mean >= config.least_progress * (fall.mean - gain))
    slope = -reference.slope
    sure = gain - error
    credit = behind = 0.0
    if level and sure > 0.0:
        credit = min(sure / slope, predicted_steps) if slope > 0.0 else predicted_steps
    elif not level and kept:
        behind = -gain / slope if slope > 0.0 else 0.0
    sign = "below" if gain >= 0 else "above"
    reason = f"averaged loss {abs(gain):.4g} {sign} the curve at equal cost (standard error {error:.2g})"
    if behind:
        reason += f", but {fall.mean:.4g} below the loss before"
    return Verdict(kept, gain, error, credit, reason, behind_steps=behind, falling=falling)


def overfitted(held_out: NDArray[np.float64], trained: NDArray[np.float64], config: VerdictConfig) -> bool:
    """Whether a model knows its training examples clearly better than others.

    Averaged weights are a little better than those that were trained with, so that the comparison errs on the
    side of no.

    Args:
        held_out: Per-example losses of the window mean, shape (n,).
        trained: Mean losses of the last batches, before their updates, shape (k,).
        config: Confidence.
    """
    if trained.size < 2 or held_out.size < 2:
        return False
    variance = held_out.var(ddof=1) / held_out.size + trained.var(ddof=1) / trained.size
    return bool(held_out.mean() - trained.mean() > config.confidence_z * math.sqrt(variance))


def rate_between(
    earlier: NDArray[np.float64], losses: NDArray[np.float64], steps: float, age: float
) -> NDArray[np.float64]:
    """Change of losses per step at the newer of two points of a curve that is a power of the steps.

    Where the mean does not fall, or is not positive, the curve is taken to be straight over the logarithm of
    the steps.

    Args:
        earlier: Per-example losses at the older point, shape (n,).
        losses: Those at the newer one.
        steps: Steps between them, less than `age`.
        age: Steps that the curve had come by the newer one.

    Example:
        >>> rate = rate_between(np.array([1.0]), np.array([0.5]), 10.0, 20.0)  # one over the steps
        >>> round(float(rate[0]), 6) == -0.5 / 20.0
        True
    """
    rate = (losses - earlier) / -straightened(-steps, age)
    now, before = float(losses.mean()), float(earlier.mean())
    if not 0.0 < now < before:
        return rate
    ratio = before / now
    return rate * (math.log(ratio) / (ratio - 1.0))


def steepest(losses: NDArray[np.float64], z: float) -> float:
    """Steepest fall per step that losses of successive steps allow: the least squares slope less z errors.

    Args:
        losses: One for each step, shape (n,).
        z: Standard errors.

    Returns:
        The slope; minus infinity where there are too few losses to say, or not all of them are finite.

    Example:
        >>> steepest(np.array([5.0, 4.0, 3.0, 2.0, 1.0]), 2.0)
        -1.0
    """
    count = losses.size
    if count < _FEWEST or not np.isfinite(losses).all():
        return -math.inf
    steps = np.arange(count) - (count - 1) / 2.0
    spread = float((steps**2).sum())
    found = float((steps * losses).sum()) / spread
    left = losses - losses.mean() - found * steps
    return found - z * math.sqrt(float((left**2).sum()) / (count - 2) / spread)


def straightened(steps: float, age: float) -> float:
    """Steps of a straight line that fall as far as `steps` more of a curve over the logarithm of steps.

    Args:
        steps: Further steps, more than ``-age``.
        age: Steps that the curve had come by now, where the line touches it.

    Example:
        >>> round(straightened(10.0, 10.0), 4) == round(10 * math.log(2.0), 4)
        True
    """
    return age * math.log1p(steps / age) if math.isfinite(age) else steps
