"""Optimizers of the built-in problems, with PyTorch's update rules, and their schedules.

Keras writes some rules differently: its momentum holds the learning rate, its Adam adds epsilon before the
bias correction of the second moment. Runs of one configuration in several frameworks agree only where the
formulas do, so the built-in problems are trained by these; users keep their own Keras optimizers.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from hybridcore.errors import TaskError
from hybridcore.protocols import OptimizerSpec

__all__ = ["SpecAdam", "SpecSchedule", "SpecSgd", "build_optimizer"]


class SpecSgd(keras.optimizers.Optimizer):
    """``v = momentum v + g + decay w``, then ``w -= rate v`` (PyTorch's SGD; heavy ball, Polyak 1964).

    Args:
        learning_rate: Rate or schedule.
        momentum: Heavy-ball coefficient; 0 for none.
        decay: L2 coefficient.
    """

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.0, decay: float = 0.0) -> None:
        super().__init__(learning_rate, name="spec_sgd")
        self.momentum, self.decay = momentum, decay
        self.heavy_ball: list[Any] = []

    def build(self, variables: Any) -> None:
        """Make a velocity per variable where there is momentum."""
        if self.built:
            return
        super().build(variables)
        if self.momentum:
            self.heavy_ball = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable."""
        gradient = tf.convert_to_tensor(gradient)
        if self.decay:
            gradient = gradient + self.decay * variable
        if self.momentum:
            velocity = self.heavy_ball[self._get_variable_index(variable)]
            gradient = self.momentum * velocity + gradient
            self.assign(velocity, gradient)
        self.assign_sub(variable, tf.cast(learning_rate, variable.dtype) * gradient)


class SpecAdam(keras.optimizers.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1) as PyTorch has it; AdamW with decoupled decay.

    With ``m = b1 m + (1 - b1) g`` and ``v = b2 v + (1 - b2) g^2`` at update t ::

        w -= rate / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + epsilon)

    Decoupled decay (Loshchilov and Hutter 2019) first multiplies w by ``1 - rate * decay``; otherwise
    ``decay * w`` is added to g. The powers are taken in float64: in float32, ``1 - 0.999`` is wrong in the
    fifth digit.

    Args:
        learning_rate: Rate or schedule.
        decay: Weight decay.
        decoupled: AdamW's decay instead of L2.
        beta_1: Memory of the first moment.
        beta_2: Memory of the second moment.
        epsilon: Added to the corrected root.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        decay: float = 0.0,
        decoupled: bool = False,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(learning_rate, name="spec_adam")
        self.decay, self.decoupled = decay, decoupled
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.first_moments: list[Any] = []
        self.second_moments: list[Any] = []

    def build(self, variables: Any) -> None:
        """Make two moments per variable."""
        if self.built:
            return
        super().build(variables)
        self.first_moments, self.second_moments = self.add_optimizer_variables(variables, ["first", "second"])

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable."""
        index, dtype = self._get_variable_index(variable), variable.dtype
        first, second = self.first_moments[index], self.second_moments[index]
        gradient = tf.convert_to_tensor(gradient)
        rate = tf.cast(learning_rate, tf.float64)
        if self.decay and self.decoupled:
            self.assign(variable, variable * tf.cast(1.0 - rate * self.decay, dtype))
        elif self.decay:
            gradient = gradient + self.decay * variable
        self.assign(first, first + (1.0 - self.beta_1) * (gradient - first))
        self.assign(second, self.beta_2 * second + (1.0 - self.beta_2) * gradient * gradient)
        step = tf.cast(self.iterations + 1, tf.float64)
        size = tf.cast(rate / (1.0 - tf.constant(self.beta_1, tf.float64) ** step), dtype)
        root = tf.cast(tf.sqrt(1.0 - tf.constant(self.beta_2, tf.float64) ** step), dtype)
        self.assign_sub(variable, size * first / (tf.sqrt(second) / root + self.epsilon))


class SpecSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from ``1 / warmup_steps`` to 1, then constant, or a decay that reaches 0 at the end.

    Args:
        spec: Peak rate, schedule, lengths.

    Raises:
        TaskError: The schedule's name is unknown.

    Example:
        >>> schedule = SpecSchedule(OptimizerSpec(learning_rate=0.5, schedule="cosine", total_steps=100))
        >>> float(schedule(50))
        0.25
    """

    def __init__(self, spec: OptimizerSpec) -> None:
        super().__init__()
        if spec.schedule not in {"constant", "linear", "cosine"}:
            raise TaskError(
                "the learning-rate schedule is unknown",
                where="optimizer.schedule",
                got=spec.schedule,
                expected="constant, cosine or linear",
                fix="choose one of these in the task's options",
            )
        self.spec = spec

    def __call__(self, step: Any) -> Any:
        """Learning rate of the update after `step` updates, float64."""
        spec = self.spec
        step = tf.cast(tf.convert_to_tensor(step), tf.float64)
        share = (step - spec.warmup_steps) / max(1, spec.total_steps - spec.warmup_steps)
        share = tf.clip_by_value(share, 0.0, 1.0)
        factor = tf.ones_like(share)
        if spec.schedule == "linear":
            factor = 1.0 - share
        elif spec.schedule == "cosine":
            factor = 0.5 * (1.0 + tf.cos(math.pi * share))
        if spec.warmup_steps:
            factor = tf.where(step < spec.warmup_steps, (step + 1.0) / spec.warmup_steps, factor)
        return spec.learning_rate * factor


def build_optimizer(spec: OptimizerSpec) -> keras.optimizers.Optimizer:
    """The optimizer of `spec`, its schedule inside.

    Args:
        spec: Name, rates, schedule.

    Raises:
        TaskError: The name of the optimizer or the schedule is unknown.
    """
    schedule = SpecSchedule(spec)
    plain = spec.schedule == "constant" and not spec.warmup_steps
    rate = spec.learning_rate if plain else schedule
    if spec.name in {"sgd", "momentum"}:
        return SpecSgd(rate, spec.momentum if spec.name == "momentum" else 0.0, spec.weight_decay)
    if spec.name in {"adam", "adamw"}:
        return SpecAdam(rate, spec.weight_decay, decoupled=spec.name == "adamw")
    raise TaskError(
        "the optimizer is unknown",
        where="optimizer.name",
        got=spec.name,
        expected="sgd, momentum, adam or adamw",
        fix="choose one of these in the task's options",
    )
