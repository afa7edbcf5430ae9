"""Re-estimation of BatchNormalization statistics after the weights have moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from hybridcore_tensorflow.variables import components

__all__ = ["refresh"]


def refresh(norms: Sequence[Any], measure: Callable[[Any], Sequence[Any]], batches: Iterable[Any]) -> None:
    """Replace moving means and variances by their plain average over batches.

    Args:
        norms: The layers.
        measure: Gives the statistics of one batch, two tensors per layer, and leaves the layers as they are.
        batches: Batches; none, or one whose statistics are not finite, leave everything as it was.
    """
    totals: list[Any] = []
    count = 0
    for batch in batches:
        values = [tensor.numpy().astype(np.float64) for tensor in measure(batch)]
        totals = [a + b for a, b in zip(totals, values, strict=True)] if count else values
        count += 1
    if not count or not all(np.isfinite(total).all() for total in totals):
        return
    targets = [v for layer in norms for v in (layer.moving_mean, layer.moving_variance)]
    for target, total in zip(targets, totals, strict=True):
        for part in components(target):
            part.assign((total / count).astype(part.dtype.as_numpy_dtype))
