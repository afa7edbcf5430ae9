"""Residuals of a batch and their derivatives along changes of the weights, in forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hybridcore.errors import BatchError
from hybridcore.layout import Buckets
from hybridcore_tensorflow.batches import as_tensors
from hybridcore_tensorflow.buckets import BucketStore
from hybridcore_tensorflow.losses import LossCaller, batch_errors
from hybridcore_tensorflow.modes import batch_statistics, undisturbed
from hybridcore_tensorflow.variables import Variables, raw

__all__ = ["Lineariser"]


class Lineariser:
    """One graph for residuals r (n,) and one product ``J v``; any number of changes v is as many calls.

    Args:
        found: The model's variables.
        residuals: Calls the residual function.
        norms: BatchNormalization layers that learn; they use the batch's own statistics.
        store: How changes lie in buckets.

    Attributes:
        traces: Graphs made so far: two for each shape of batch.
    """

    def __init__(
        self, found: Variables, residuals: LossCaller, norms: Sequence[Any], store: BucketStore
    ) -> None:
        self._found, self._residuals, self._norms, self._store = found, residuals, norms, store
        self._plain = tf.function(self._plain_graph, autograph=False, reduce_retracing=True)
        self._along = tf.function(self._along_graph, autograph=False, reduce_retracing=True)
        self.traces = 0

    def __call__(
        self, batch: Any, directions: Sequence[Buckets]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Residuals (n,) at the weights and products (n, k) along k changes.

        Raises:
            BatchError: The residual function cannot take the batch, or gives no vector.
            DeltaError: A change does not fit the layout.
        """
        changes = [self._store.tensors(buckets) for buckets in directions]
        tensors = as_tensors(batch)
        with batch_errors(batch):
            if not changes:
                values = self._plain(tensors).numpy()
                return values, np.zeros((len(values), 0))
            pairs = [self._along(tensors, change) for change in changes]
        return pairs[0][0].numpy(), np.stack([product.numpy() for _, product in pairs], axis=1)

    def _plain_graph(self, batch: Any) -> Any:
        self.traces += 1
        with undisturbed(self._found.state, self._found.seeds), batch_statistics(self._norms):
            return tf.cast(self._vector(batch), tf.float64)

    def _along_graph(self, batch: Any, change: Sequence[Any]) -> Any:
        self.traces += 1
        primals, tangents = [raw(v) for v in self._found.trained], self._store.cut(change)
        with undisturbed(self._found.state, self._found.seeds), batch_statistics(self._norms):
            with tf.autodiff.ForwardAccumulator(primals, tangents) as accumulator:
                values = self._vector(batch)
            product = accumulator.jvp(values, tf.UnconnectedGradients.ZERO)
            return tf.cast(values, tf.float64), tf.cast(product, tf.float64)

    def _vector(self, batch: Any) -> Any:
        values = self._residuals(batch, training=False)
        if values.shape.rank != 1:
            raise BatchError(
                "the residual function returned no vector",
                where="residual_fn(model, batch)",
                got=f"shape {tuple(values.shape)}",
                expected="shape (n,)",
                fix="return one residual per point, whose squares are the losses",
            )
        return values
