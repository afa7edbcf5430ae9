"""What a run has done so far, in numbers."""

from __future__ import annotations

import attrs

__all__ = ["Counts"]


@attrs.define
class Counts:
    """Counters of a run.

    Attributes:
        cost: Cost so far in real steps; a forward pass on a batch counts a third.
        real_steps: Optimizer steps with a backward pass, skipped ones included.
        backward_passes: Backward passes (F49).
        skipped: Real steps without an update.
        predicted_steps: Optimizer steps that the applied changes stand for.
        jumps: Applied changes.
        refused: Changes that were not applied, or undone at once.
        kept: Trials whose verdict let them stand.
        failed: Trials that were undone.
        rollbacks: Restored snapshots.
        corrections: Corrections of an applied change that the probes confirmed (F28).
        corrections_reverted: Corrections that the probes refuted (F29).
        micro_corrections: Corrections of a pending change (F31).

    Example:
        >>> Counts().real_steps
        0
    """

    cost: float = 0.0
    real_steps: int = 0
    backward_passes: int = 0
    skipped: int = 0
    predicted_steps: float = 0.0
    jumps: int = 0
    refused: int = 0
    kept: int = 0
    failed: int = 0
    rollbacks: int = 0
    corrections: int = 0
    corrections_reverted: int = 0
    micro_corrections: int = 0
