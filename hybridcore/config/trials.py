"""Tables of trials: how they are probed, judged and paid for."""

from __future__ import annotations

import attrs

from hybridcore.config.validators import between

__all__ = ["BudgetConfig", "ProbeConfig", "VerdictConfig"]


@attrs.frozen(kw_only=True)
class ProbeConfig:
    """Table ``[probe]``: forward-only losses on held-out examples (F81).

    Attributes:
        batches: Held-out batches that one probe reads; where the host gives none, the first this many
            training batches are remembered instead.
        tentative: Compare paired losses right before and after a jump, and undo one that is clearly worse.
        tolerance: Share of the loss by which the mean may rise in the tentative test; a jump that first
            raises the loss can still pay, so only clear damage is undone.
        confidence_z: Standard errors beyond the tolerance that count as clear.
    """

    batches: int = attrs.field(default=4, validator=between(1))
    tentative: bool = True
    tolerance: float = attrs.field(default=0.1, validator=between(0.0))
    confidence_z: float = attrs.field(default=2.0, validator=between(0.0))


@attrs.frozen(kw_only=True)
class VerdictConfig:
    """Table ``[verdict]``: the delayed judgement of a trial (F82).

    Attributes:
        confidence_z: A trial fails when its gain is below minus this many errors, those of the paired
            differences and of the curve that is continued.
        least_progress: A trial behind the curve is kept where the loss has still fallen by this share of what
            the curve asks for, and fails below that.
        guard_z: One-sided guard inside a trial: training losses this many deviations above the level before
            it, and above the peak of the last 32 losses, fail the trial: the second one, or one that is three
            times as far out.
        guard_factor: The guard also needs a loss above this multiple of that level.
    """

    confidence_z: float = attrs.field(default=2.0, validator=between(0.0))
    least_progress: float = attrs.field(default=0.5, validator=between(0.0, 1.0))
    guard_z: float = attrs.field(default=6.0, validator=between(1.0))
    guard_factor: float = attrs.field(default=1.5, validator=between(1.0))


@attrs.frozen(kw_only=True)
class BudgetConfig:
    """Table ``[budget]``: what trying may cost (F83).

    Attributes:
        share: Share of the run's cost that probes, failed trials and restores may take unearned.
        credit_share: Share of the verified credit that may be spent on top.
        grace_steps: Real steps' worth of cost granted at the start, so that the first trials can happen.
        backoff_steps: Real steps of pause after a failed trial.
        backoff_factor: The pause grows by this factor with each failure in a row.
        max_backoff_steps: Longest pause.
        count_seconds: Hold the budget in wall-clock seconds as well as in step equivalents. Both are always
            counted; without this no decision depends on a clock, and the same seed gives the same run (F72).
    """

    share: float = attrs.field(default=0.02, validator=between(0.0, 1.0))
    credit_share: float = attrs.field(default=0.5, validator=between(0.0, 1.0))
    grace_steps: float = attrs.field(default=20.0, validator=between(0.0))
    backoff_steps: int = attrs.field(default=20, validator=between(0))
    backoff_factor: float = attrs.field(default=2.0, validator=between(1.0))
    max_backoff_steps: int = attrs.field(default=2000, validator=between(0))
    count_seconds: bool = False
