"""Which options of the adapter go together."""

from __future__ import annotations

from typing import Any

from hybridcore.errors import ModelError

__all__ = ["check_options"]


def check_options(train_step: Any, accumulate: int, max_grad_norm: float | None) -> None:
    """Refuse options that are out of range or exclude each other.

    Raises:
        ModelError: They are.
    """
    if accumulate < 1:
        raise ModelError(
            "accumulate is out of range", where="accumulate", got=accumulate, expected="1 or more"
        )
    if train_step is None:
        return
    if not callable(train_step):
        raise ModelError(
            "train_step cannot be called",
            where="train_step",
            got=type(train_step).__name__,
            expected="a function of a batch that updates the weights and returns the mean loss",
        )
    if accumulate > 1 or max_grad_norm is not None:
        raise ModelError(
            "a train step of your own accumulates and clips by itself",
            where="train_step",
            got=f"accumulate={accumulate}, max_grad_norm={max_grad_norm}",
            expected="accumulate=1 and max_grad_norm=None",
            fix="leave them out, or leave train_step out",
        )
