"""Table of the cycle of phases."""

from __future__ import annotations

import attrs

from hybridcore.config.validators import between, choice

__all__ = ["PhasesConfig"]


@attrs.frozen(kw_only=True)
class PhasesConfig:
    """Table ``[phases]``: the rules of the cycle, whatever the controller wants.

    Attributes:
        warmup_steps: Real steps before anything is predicted.
        full_steps: Real steps of the mandatory Full block between warm-up and the first Predict.
        max_consecutive_predicts: Predict phases in a row (Correct between them) before a Full phase.
        predict_mode: ``"jump"`` applies a change between two real steps and consumes no batch;
            ``"step"`` spreads it over `predict_steps` batches that are consumed without a backward pass.
        predict_steps: Batches of a Predict phase in mode ``"step"``.
        forward_every: In mode ``"step"``, every this many predicted steps the loss is measured by a
            forward pass; 0 measures none.
    """

    warmup_steps: int = attrs.field(default=10, validator=between(0))
    full_steps: int = attrs.field(default=10, validator=between(1))
    max_consecutive_predicts: int = attrs.field(default=5, validator=between(1))
    predict_mode: str = attrs.field(default="jump", validator=choice("jump", "step"))
    predict_steps: int = attrs.field(default=5, validator=between(1))
    forward_every: int = attrs.field(default=0, validator=between(0))
