"""A real step under `tf.distribute`: gradients are exchanged in one graph, applied in a second one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hybridcore.errors import BatchError, ModelError
from hybridcore.protocols import StepResult
from hybridcore_tensorflow.batches import as_tensors, describe, n_examples, split
from hybridcore_tensorflow.hook import UpdateHook, widened
from hybridcore_tensorflow.losses import LossCaller, batch_errors
from hybridcore_tensorflow.snapshot import VariableSet
from hybridcore_tensorflow.variables import raw

__all__ = ["DistributedRunner"]


class DistributedRunner:
    """Forward and backward on all replicas, a look at the numbers, then the update on all replicas.

    TensorFlow allows no condition around an update that merges replicas, so the host decides between two
    graphs. A batch is cut evenly along axis 0; values that are distributed already are taken as they are.

    Args:
        strategy: The strategy under which the variables were made.
        optimizer: Keras optimizer made under it.
        trained: Trained variables.
        state: Statistics and generators of all replicas.
        losses: Calls the loss function.
        hook: Holds the waiting momentum rule.
        limit: Clip gradients to this norm, or None.

    Raises:
        ModelError: The strategy spans several processes, or the optimizer scales losses.
    """

    def __init__(
        self,
        strategy: Any,
        optimizer: Any,
        trained: Sequence[Any],
        state: VariableSet,
        losses: LossCaller,
        hook: UpdateHook,
        limit: float | None,
    ) -> None:
        if strategy.extended._in_multi_worker_mode() or hasattr(optimizer, "inner_optimizer"):
            raise ModelError(
                "this way of distributing is not served",
                where="tf.distribute",
                got=f"{type(strategy).__name__} with {type(optimizer).__name__}",
                expected="one process, and an optimizer without loss scaling",
                fix="use MirroredStrategy, in float32 or bfloat16",
            )
        self._strategy, self._optimizer, self._trained = strategy, optimizer, list(trained)
        self._state, self._losses, self._hook, self._limit = state, losses, hook, limit
        self._replicas = int(strategy.num_replicas_in_sync)
        self._forward = tf.function(self._forward_graph, autograph=False, reduce_retracing=True)
        self._update = tf.function(self._update_graph, autograph=False)
        self.traces = 0

    def run(self, batch: Any) -> StepResult:
        """One step on a batch; a non-finite loss or gradient changes nothing."""
        former = self._state.copy()
        try:
            with batch_errors(batch):
                loss, norm, gradients, counted = self._forward(
                    self._dealt(batch), self._hook.unit_ratio is not None
                )
            value, size = self._first(loss), self._first(norm)
            count = int(self._first(counted)) or n_examples(batch)
            updated = math.isfinite(value) and math.isfinite(size)
            if updated:
                first = [None if g is None else self._local(g) for g in gradients]
                self._hook.scale_pending(first, self._trained)
                self._update(gradients)
        except BaseException:
            self._state.assign(former)
            raise
        if not updated:
            self._state.assign(former)
        return StepResult(value, size, not updated, count, 1)

    def _dealt(self, batch: Any) -> Any:
        leaves = tf.nest.flatten(batch)
        if any(isinstance(leaf, tf.distribute.DistributedValues) for leaf in leaves):
            return batch
        parts = [part for part, _ in split(as_tensors(batch), self._replicas, "tf.distribute")]
        if len(parts) < self._replicas:
            raise BatchError(
                "a batch has fewer examples than there are replicas",
                where="tf.distribute",
                got=describe(batch),
                expected=f"{self._replicas} examples or more",
                fix="raise the batch size",
            )
        rows = [tf.nest.flatten(part) for part in parts]
        dealt = [
            self._strategy.experimental_distribute_values_from_function(
                lambda context, column=column: column[context.replica_id_in_sync_group]
            )
            for column in zip(*rows, strict=True)
        ]
        return tf.nest.pack_sequence_as(parts[0], dealt)

    def _forward_graph(self, batch: Any, clipping: bool) -> Any:
        self.traces += 1  # `clipping` makes a graph of its own
        return self._strategy.run(self._replica, args=(batch,))

    def _replica(self, batch: Any) -> Any:
        context = tf.distribute.get_replica_context()
        add = tf.distribute.ReduceOp.SUM
        with tf.GradientTape() as tape:
            mean, count = self._losses.mean(batch)
            counted = context.all_reduce(add, tf.cast(count, mean.dtype))
            total = context.all_reduce(add, tf.cast(tf.maximum(count, 1), mean.dtype))
            share = mean * tf.cast(tf.maximum(count, 1), mean.dtype) / total
        gradients = tape.gradient(share, [raw(v) for v in self._trained])
        present = [tf.convert_to_tensor(g) for g in gradients if g is not None]
        reduced = iter(context.all_reduce(add, present))
        whole = [None if g is None else next(reduced) for g in gradients]
        if self._hook.unit_ratio is not None:
            whole = self._hook.clip_units(whole, self._trained)
        norm = tf.linalg.global_norm(widened([g for g in whole if g is not None]))
        if self._limit is not None:
            factor = tf.minimum(1.0, self._limit / tf.maximum(norm, 1e-30))
            whole = [None if g is None else g * tf.cast(factor, g.dtype) for g in whole]
            norm = tf.minimum(norm, self._limit)
        return context.all_reduce(add, share), norm, whole, counted

    def _update_graph(self, gradients: Any) -> None:
        self.traces += 1

        def apply(whole: Any) -> None:
            # Keras adds the replicas' gradients up; these are whole already.
            shares = [None if g is None else g / self._replicas for g in whole]
            self._optimizer.apply(shares, self._trained)

        self._strategy.run(apply, args=(gradients,))

    def _local(self, value: Any) -> Any:
        return self._strategy.experimental_local_results(value)[0]

    def _first(self, value: Any) -> float:
        return float(self._local(value).numpy())
