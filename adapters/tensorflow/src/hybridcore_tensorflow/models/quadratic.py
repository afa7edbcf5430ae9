"""A quadratic with known curvature and optimum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from hybridcore_tensorflow.models.built import BuiltModel

__all__ = ["Quadratic", "build_quadratic"]


class Quadratic(tf.Module):
    """``0.5 (w - w*)^T diag(h) (w - w*)``.

    Args:
        curvature: h, shape (n,).
        optimum: w*, shape (n,).

    Example:
        >>> Quadratic([1.0, 4.0], [0.0, 1.0])().numpy().item()
        2.0
    """

    def __init__(self, curvature: Any, optimum: Any) -> None:
        super().__init__()
        self.w = tf.Variable(tf.zeros(len(optimum)))
        # NumPy's, so that none of their digits is lost before the precision of the weights is known.
        self._curvature, self._optimum = np.asarray(curvature), np.asarray(optimum)

    def __call__(self) -> Any:
        """The loss at the weights, shape (1,)."""
        gap = self.w - tf.constant(self._optimum, self.w.dtype)
        return 0.5 * tf.reduce_sum(gap * tf.constant(self._curvature, gap.dtype) * gap, keepdims=True)


def build_quadratic(shape: Mapping[str, Any]) -> BuiltModel:
    """Quadratic of `shape`: curvature, optimum, noise.

    With noise, training batches hold the numbers to be added to the gradient; see
    `hybridcore.tasks.quadratic.noisy_batches`.
    """
    noisy = bool(shape["noise"])

    def loss_fn(model: Any, batch: Any, training: bool = False) -> Any:
        loss = model()
        if training and noisy:  # no loss, but a gradient
            w = tf.convert_to_tensor(model.w)
            loss += tf.reduce_sum(tf.cast(batch[0], w.dtype) * (w - tf.stop_gradient(w)))
        return loss

    def sums(model: Any, batch: Any) -> tuple[Any, ...]:
        return tf.reduce_sum(model()), tf.constant(1)

    model = Quadratic(shape["curvature"], shape["optimum"])
    return BuiltModel(model, loss_fn, sums, lambda totals: {"loss": totals[0] / totals[1]})
