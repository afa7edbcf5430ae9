"""Listens inside ``optimizer.apply``: gradient norm, guard, momentum rule, count of updates."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from hybridcore_tensorflow.jump_rules import has_velocity, inner, scale_velocity
from hybridcore_tensorflow.variables import components

__all__ = ["UpdateHook"]


class UpdateHook:
    """Attached to one optimizer; lives in every graph that is traced afterwards.

    Keras has no hooks on optimizers, so the instance's own `apply` and `scale_loss` are shadowed until
    `detach`; class, configuration and variables stay as they are. Inside a graph everything is told through
    variables, so that a user's compiled step and ``model.fit`` are followed without a callback to Python:

    - a non-finite gradient, or a non-finite loss seen by `scale_loss`, applies nothing (F41);
    - after a jump the velocity is scaled before it is used (F59).

    Under a `tf.distribute` strategy nothing is done here, since Keras merges replicas inside `apply` and
    TensorFlow allows no condition around that; `DistributedRunner` does it between two graphs.

    Args:
        optimizer: A built Keras optimizer.
        variable: A trained variable; the hook's own lie beside it.
        limit: Clip gradients to this Euclidean norm, or None.
    """

    def __init__(self, optimizer: Any, variable: Any, limit: float | None) -> None:
        self._outer, self._inner, self._limit = optimizer, inner(optimizer), limit
        with tf.device(components(variable)[0].device):
            self._pending = tf.Variable(False, trainable=False, name="hybridcore_pending")
            self._veto = tf.Variable(False, trainable=False, name="hybridcore_veto")
            self.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="hybridcore_updates")
            self.report = tf.Variable([math.nan, math.nan], trainable=False, name="hybridcore_report")
        self._waiting = False
        self._apply = type(self._inner).apply.__get__(self._inner)
        self._scale = type(optimizer).scale_loss.__get__(optimizer)
        self.attach()

    def attach(self) -> None:
        """Put the hook on, again after `detach`."""
        object.__setattr__(self._inner, "apply", self._on_apply)
        object.__setattr__(self._outer, "scale_loss", self._on_scale)

    def detach(self) -> None:
        """Take the hook off; graphs traced before keep it."""
        for owner, name in ((self._inner, "apply"), (self._outer, "scale_loss")):
            owner.__dict__.pop(name, None)

    @property
    def pending(self) -> bool:
        """Whether the momentum rule waits for the next gradient."""
        if self._waiting:
            self._waiting = bool(self._pending.numpy())
        return self._waiting

    @pending.setter
    def pending(self, value: bool) -> None:
        if value != self.pending:
            self._pending.assign(value)
            self._waiting = value

    def scale_pending(self, gradients: Any, variables: Any) -> None:
        """Apply a waiting momentum rule now, for updates that do not pass through the hook."""
        if self.pending:
            scale_velocity(self._outer, gradients, variables)
            self.pending = False

    def _on_scale(self, loss: Any) -> Any:
        if not tf.distribute.has_strategy():
            value = tf.cast(loss, tf.float32)
            self._veto.assign(tf.logical_not(tf.math.is_finite(value)))
            self.report.assign(tf.stack([value, math.nan]))
        return self._scale(loss)

    def _on_apply(self, grads: Any, trainable_variables: Any = None) -> None:
        grads = list(grads)
        if tf.distribute.has_strategy() or not any(g is not None for g in grads):
            self._apply(grads, trainable_variables)
            return
        variables = self._inner._trainable_variables if trainable_variables is None else trainable_variables
        variables = list(variables)
        factor = self._inner.loss_scale_factor or 1.0
        norm = tf.linalg.global_norm([_wide(g) for g in grads if g is not None]) / factor
        finite = tf.logical_and(tf.math.is_finite(norm), tf.logical_not(self._veto))
        if self._limit is not None:
            share = tf.minimum(1.0, self._limit / tf.maximum(norm, 1e-30))
            grads = [None if g is None else _times(g, share) for g in grads]
            norm = tf.minimum(norm, self._limit)

        def update() -> Any:
            if has_velocity(self._inner):
                tf.cond(self._pending, lambda: self._rescale(grads, variables), lambda: tf.constant(0))
            self._apply(grads, variables)
            return self.updates.assign_add(1)

        tf.cond(finite, update, lambda: self.updates.read_value())
        self._veto.assign(False)
        self.report.assign(tf.stack([self.report[0], norm]))

    def _rescale(self, gradients: Any, variables: Any) -> Any:
        scale_velocity(self._outer, gradients, variables)
        self._pending.assign(False)
        return tf.constant(0)


def _wide(gradient: Any) -> Any:
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    return tf.cast(values, tf.float32)


def _times(gradient: Any, factor: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values * tf.cast(factor, gradient.values.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return gradient * tf.cast(factor, gradient.dtype)
