"""Optimizers and learning-rate schedules from words that every framework knows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hybridcore.errors import TaskError
from hybridcore.protocols import OptimizerSpec

__all__ = ["build_optimizer", "build_schedule", "schedule_factor"]


def build_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
    """The optimizer of `spec`, with PyTorch's update rules.

    Weight decay is added to the gradient, and for ``"adamw"`` to the update; a heavy ball has no dampening;
    Adam's epsilon (1e-8) is added after the square root of the corrected second moment.

    Args:
        spec: What to build.

    Raises:
        TaskError: The name of the optimizer or of its schedule is unknown.
    """
    decay = [optax.add_decayed_weights(spec.weight_decay)] if spec.weight_decay else []
    rules: dict[str, list[optax.GradientTransformation]] = {
        "sgd": decay,
        "momentum": [*decay, optax.trace(spec.momentum)],
        "adam": [*decay, _scale_by_adam()],
        "adamw": [_scale_by_adam(), *decay],
    }
    if spec.name not in rules:
        raise TaskError(
            "the optimizer is unknown",
            where="optimizer.name",
            got=spec.name,
            expected="sgd, momentum, adam or adamw",
            fix="choose one of these in the task's options",
        )
    schedule_factor(spec, spec.warmup_steps)
    constant = spec.schedule == "constant" and spec.warmup_steps == 0
    rate: Any = spec.learning_rate if constant else _traced_schedule(spec)
    return optax.chain(*rules[spec.name], optax.scale_by_learning_rate(rate))


def _scale_by_adam(b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015, algorithm 1) with bias corrections that are exact in float32.

    `optax.scale_by_adam` takes ``1 - b2 ** count`` in float32, which is off by 1e-5 at the first steps, where
    PyTorch computes it in double precision.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, optax.tree.zeros_like(params))

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: b2 * v + (1.0 - b2) * (g * g), state.nu, gradients)

        def step(m: Any, v: Any) -> Any:
            first, second = (-jnp.expm1(count.astype(m.dtype) * math.log(b)) for b in (b1, b2))
            return (m / first) / (jnp.sqrt(v / second) + epsilon)

        return jax.tree.map(step, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def schedule_factor(spec: OptimizerSpec, step: int) -> float:
    """Learning rate at real step `step` (from 0) over the peak learning rate.

    Linear warm-up from ``1 / warmup_steps`` to 1, then a decay that reaches 0 at `total_steps`.

    Raises:
        TaskError: The schedule's name is unknown.

    Example:
        >>> schedule_factor(OptimizerSpec(schedule="cosine", total_steps=100), 50)
        0.5
    """
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    share = min(1.0, (step - spec.warmup_steps) / max(1, spec.total_steps - spec.warmup_steps))
    if spec.schedule == "constant":
        return 1.0
    if spec.schedule == "linear":
        return 1.0 - share
    if spec.schedule == "cosine":
        return round(0.5 * (1.0 + math.cos(math.pi * share)), 12)
    raise TaskError(
        "the learning-rate schedule is unknown",
        where="optimizer.schedule",
        got=spec.schedule,
        expected="constant, cosine or linear",
        fix="choose one of these in the task's options",
    )


def build_schedule(spec: OptimizerSpec) -> float | Callable[[int], float]:
    """The learning rate of `spec` as a number, or by update count where it changes."""
    if spec.schedule == "constant" and spec.warmup_steps == 0:
        return spec.learning_rate
    return lambda count: spec.learning_rate * schedule_factor(spec, count)


def _traced_schedule(spec: OptimizerSpec) -> Callable[[Any], Any]:
    """`schedule_factor` times the peak rate, on traced counts."""
    warmup = spec.warmup_steps

    def rate(count: Any) -> Any:
        step = jnp.asarray(count, jnp.result_type(float))
        share = jnp.clip((step - warmup) / max(1, spec.total_steps - warmup), 0.0, 1.0)
        factor = {
            "constant": jnp.ones_like(share),
            "linear": 1.0 - share,
            "cosine": 0.5 * (1.0 + jnp.cos(math.pi * share)),
        }[spec.schedule]
        return spec.learning_rate * jnp.where(step < warmup, (step + 1.0) / max(warmup, 1), factor)

    return rate
