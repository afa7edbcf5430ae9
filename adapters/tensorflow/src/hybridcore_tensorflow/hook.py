"""Listens inside ``optimizer.apply``: gradient norm, guard, momentum rule, learning rate, updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from hybridcore_tensorflow.adaptive_clipping import clip_unit
from hybridcore_tensorflow.jump_rules import has_velocity, inner, scale_rated_velocity, scale_velocity
from hybridcore_tensorflow.variables import components, raw

__all__ = ["UpdateHook", "widened"]


class UpdateHook:
    """Attached to one optimizer; lives in every graph that is traced afterwards.

    Keras has no hooks on optimizers, so the instance's own `apply`, `scale_loss` and reading of the learning
    rate are shadowed until `detach`; class, configuration and variables stay as they are. Inside a graph
    everything is told through variables, so that a user's compiled step and ``model.fit`` are followed
    without a callback to Python:

    - a non-finite gradient, or a non-finite loss seen by `scale_loss`, applies nothing (F41);
    - after a jump the velocity is scaled before it is used (F59);
    - a learning rate that comes from a schedule is multiplied by `rate_factor` (F40).

    Under a `tf.distribute` strategy nothing is done here, since Keras merges replicas inside `apply` and
    TensorFlow allows no condition around that; `DistributedRunner` does it between two graphs.

    Args:
        optimizer: A built Keras optimizer.
        variable: A trained variable; the hook's own lie beside it.
        limit: Clip gradients to this Euclidean norm, or None.
        axes: Axis of the units of each trained variable, by the id of the `tf.Variable` (F69).

    Attributes:
        rate_factor: What every rate of a schedule is multiplied by.
        unit_ratio: Clip gradients unit by unit at this ratio, or None; read while a graph is made.
    """

    def __init__(
        self, optimizer: Any, variable: Any, limit: float | None, axes: Mapping[int, int] | None = None
    ) -> None:
        self._outer, self._inner, self._limit = optimizer, inner(optimizer), limit
        with tf.device(components(variable)[0].device):
            self._pending = tf.Variable(False, trainable=False, name="hybridcore_pending")
            self._veto = tf.Variable(False, trainable=False, name="hybridcore_veto")
            self.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="hybridcore_updates")
            self.report = tf.Variable(
                [math.nan, math.nan], dtype=tf.float64, trainable=False, name="hybridcore_report"
            )
            self.rate_factor = tf.Variable(
                1.0, dtype=tf.float64, trainable=False, name="hybridcore_rate_factor"
            )
            self._ratio = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="hybridcore_unit_ratio")
        self._axes = dict(axes or {})
        self.unit_ratio: float | None = None
        self._waiting = False
        self._apply = type(self._inner).apply.__get__(self._inner)
        self._scale = type(optimizer).scale_loss.__get__(optimizer)
        self._rate = type(self._inner)._get_current_learning_rate.__get__(self._inner)
        self.attach()

    def attach(self) -> None:
        """Put the hook on, again after `detach`."""
        object.__setattr__(self._inner, "apply", self._on_apply)
        object.__setattr__(self._outer, "scale_loss", self._on_scale)
        object.__setattr__(self._inner, "_get_current_learning_rate", self._on_rate)

    def detach(self) -> None:
        """Take the hook off; graphs traced before keep it."""
        for owner, name in (
            (self._inner, "apply"),
            (self._outer, "scale_loss"),
            (self._inner, "_get_current_learning_rate"),
        ):
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

    @property
    def scheduled(self) -> bool:
        """Whether a schedule or a function makes the learning rate, instead of a variable."""
        return not isinstance(self._inner._learning_rate, keras.Variable)

    def scale_rate(self, factor: float) -> None:
        """Multiply the learning rate: the variable that holds it, or else what the schedule gives."""
        held = [self.rate_factor] if self.scheduled else components(self._inner._learning_rate)
        for variable in held:
            variable.assign(variable * tf.cast(factor, variable.dtype))
        scale_rated_velocity(self._outer, factor)

    def clip_units(self, gradients: Any, variables: Any) -> list[Any]:
        """Gradients clipped unit by unit; those of foreign variables as they are."""
        clipped = []
        for gradient, variable in zip(gradients, variables, strict=True):
            axis = self._axes.get(id(raw(variable)))
            if gradient is not None and axis is not None:
                gradient = clip_unit(gradient, variable, axis, self._ratio)
            clipped.append(gradient)
        return clipped

    def clip_adaptively(self, ratio: float | None) -> None:
        """Set `unit_ratio`, and the variable that the graphs read."""
        self.unit_ratio = ratio
        self._ratio.assign(ratio or 0.0)

    def scale_pending(self, gradients: Any, variables: Any) -> None:
        """Apply a waiting momentum rule now, for updates that do not pass through the hook."""
        if self.pending:
            scale_velocity(self._outer, gradients, variables)
            self.pending = False

    def _on_rate(self) -> Any:
        rate = self._rate()
        if isinstance(rate, keras.Variable):
            return rate
        rate = tf.convert_to_tensor(rate)
        return rate * tf.cast(self.rate_factor, rate.dtype)

    def _on_scale(self, loss: Any) -> Any:
        if not tf.distribute.has_strategy():
            value = tf.cast(loss, tf.float64)
            self._veto.assign(tf.logical_not(tf.math.is_finite(value)))
            self.report.assign(tf.stack([value, tf.constant(math.nan, tf.float64)]))
        return self._scale(loss)

    def _on_apply(self, grads: Any, trainable_variables: Any = None) -> None:
        grads = list(grads)
        if tf.distribute.has_strategy() or not any(g is not None for g in grads):
            self._apply(grads, trainable_variables)
            return
        variables = self._inner._trainable_variables if trainable_variables is None else trainable_variables
        variables = list(variables)
        if self.unit_ratio is not None:
            grads = self.clip_units(grads, variables)
        factor = self._inner.loss_scale_factor or 1.0
        norm = tf.linalg.global_norm(widened([g for g in grads if g is not None])) / factor
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
        self.report.assign(tf.stack([self.report[0], tf.cast(norm, tf.float64)]))

    def _rescale(self, gradients: Any, variables: Any) -> Any:
        scale_velocity(self._outer, gradients, variables)
        self._pending.assign(False)
        return tf.constant(0)


def widened(gradients: Sequence[Any]) -> list[Any]:
    """The numbers of gradients in float32, or in float64 where one is."""
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    wide = tf.float64 if any(v.dtype == tf.float64 for v in values) else tf.float32
    return [tf.cast(v, wide) for v in values]


def _times(gradient: Any, factor: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values * tf.cast(factor, gradient.values.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return gradient * tf.cast(factor, gradient.dtype)
