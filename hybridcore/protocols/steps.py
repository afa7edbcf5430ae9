"""What one training step gives."""

from __future__ import annotations

from enum import StrEnum

import attrs

__all__ = ["API_VERSION", "Phase", "StepRecord", "StepResult"]


API_VERSION = 1
"""Version of these protocols; a plugin carries the one it was written for as ``api_version``."""


class Phase(StrEnum):
    """Phases of a run (F1)."""

    WARMUP = "warmup"
    FULL = "full"
    PREDICT = "predict"
    CORRECT = "correct"


@attrs.frozen(slots=True)
class StepResult:
    """What one real step did.

    Attributes:
        loss: Mean training loss of the batch before the update.
        grad_norm: Euclidean norm of the gradient the optimizer saw; NaN where it is not known.
        skipped: True when no update happened (non-finite loss or gradient, or a GradScaler skipped it).
        n_examples: Examples in the batch; 0 where it is not known.
        backward_passes: Backward passes it took (more than one under accumulation or with closures) (F49).
        overflow: A gradient scaler skipped the step while it looks for its scale; no sign of trouble.
        evaluations: Forward and backward passes over the whole batch, the unit of cost; more than one where
            the optimizer evaluates a closure.
    """

    loss: float
    grad_norm: float = float("nan")
    skipped: bool = False
    n_examples: int = 0
    backward_passes: int = 1
    overflow: bool = False
    evaluations: int = 1


@attrs.frozen(slots=True)
class StepRecord:
    """One real step as predictors and monitors see it.

    Attributes:
        step: Real steps taken so far, this one included.
        phase: Phase in which the step was taken.
        loss: Mean training loss before the update.
        grad_norm: Gradient norm.
        learning_rate: The optimizer's learning rate at this step.
        seconds: Wall-clock seconds of the step.
        expected_loss: Loss that the prediction under trial promised for this step; NaN without one.
        skipped: The adapter took no update, since loss or gradient were not finite.
    """

    step: int
    phase: Phase
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    expected_loss: float = float("nan")
    skipped: bool = False
