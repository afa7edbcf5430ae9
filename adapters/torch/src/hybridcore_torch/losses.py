"""Calls the user's loss function: precision context, form of the result, typed errors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from hybridcore.errors import BatchError, ModelError, ProbeError

__all__ = ["Autocast", "LossCaller"]

Autocast = torch.dtype | Callable[[], AbstractContextManager[Any]] | None
"""Nothing, a dtype for `torch.autocast`, or a function that makes the context."""

_FORM_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError)
_DEVICE_ERRORS = tuple(
    kind for name in ("OutOfMemoryError", "AcceleratorError") if (kind := getattr(torch, name, None))
)


class LossCaller:
    """Losses of a batch from ``loss_fn(model, batch)``.

    Args:
        model: Called by the loss function, wrapped or not.
        loss_fn: Returns per-example losses, shape (n,), or their mean.
        autocast: Precision context of every forward.
        device: Where the model lies.

    Raises:
        ModelError: `autocast` is neither a dtype nor a callable.
    """

    def __init__(
        self, model: nn.Module, loss_fn: Callable[[Any, Any], Any], autocast: Autocast, device: torch.device
    ) -> None:
        self._model, self._loss_fn = model, loss_fn
        self._context: Callable[[], AbstractContextManager[Any]]
        if autocast is None:
            self._context = nullcontext
        elif isinstance(autocast, torch.dtype):
            dtype = autocast
            self._context = lambda: torch.autocast(device.type, dtype=dtype)
        elif callable(autocast):
            self._context = autocast
        else:
            raise ModelError(
                "autocast has the wrong type",
                where="autocast",
                got=autocast,
                expected="None, a torch.dtype or a function that makes a context",
                fix="pass for example torch.bfloat16",
            )

    def __call__(self, batch: Any) -> torch.Tensor:
        """Losses of the batch, as the loss function returns them.

        Raises:
            BatchError: The forward pass failed on this batch, or the result is no floating-point tensor.
        """
        try:
            with self._context():
                losses = self._loss_fn(self._model, batch)
        except BatchError:
            raise
        except _FORM_ERRORS as error:
            if isinstance(error, _DEVICE_ERRORS):
                raise
            raise BatchError(
                f"the model cannot take this batch: {error}",
                where="loss_fn(model, batch)",
                got=_describe(batch),
                fix="look at the cause above; the weights are unchanged",
            ) from error
        if not isinstance(losses, torch.Tensor) or not losses.is_floating_point():
            raise BatchError(
                "the loss function returned no losses",
                where="loss_fn(model, batch)",
                got=_describe(losses),
                expected="a floating-point tensor of shape (n,)",
                fix='return per-example losses, for example with reduction="none"',
            )
        return losses

    def per_example(self, batch: Any) -> torch.Tensor:
        """Losses of shape (n,); further axes are averaged.

        Raises:
            ProbeError: The loss function returns a single number.
        """
        losses = self(batch)
        if losses.ndim == 0:
            raise ProbeError(
                "probes need per-example losses, but the loss function returns their mean",
                where="loss_fn(model, batch)",
                got="shape ()",
                expected="shape (n,)",
                fix='use reduction="none"; training takes the mean itself',
            )
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(_describe(v) for v in value[:4])})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_describe(v)}" for k, v in list(value.items())[:4]) + "}"
    return type(value).__name__
