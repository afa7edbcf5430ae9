"""Optimizers and schedules from neutral words, against closed forms and a float64 NumPy version."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from hybridcore.errors import TaskError
from hybridcore.protocols import OptimizerSpec
from hybridcore_tensorflow.optimizers import build_optimizer


@pytest.mark.parametrize(
    ("name", "decay", "after"),
    [
        # Gradient 2 at weight 1, twice, rate 0.1; L2 decay 0.5 adds 0.5 w to the gradient.
        ("sgd", 0.0, 1.0 - 0.2 - 0.2),
        ("sgd", 0.5, (1.0 - 0.25) - 0.1 * (2.0 + 0.375)),
        ("momentum", 0.0, 1.0 - 0.2 - 0.1 * (0.9 * 2.0 + 2.0)),
        ("adam", 0.0, 1.0 - 0.1 - 0.1),
        ("adamw", 0.5, (1.0 * 0.95 - 0.1) * 0.95 - 0.1),
    ],
)
def test_two_steps_match_the_formula(name, decay, after):
    weight = tf.Variable([1.0])
    spec = OptimizerSpec(name=name, learning_rate=0.1, momentum=0.9, weight_decay=decay)
    optimizer = build_optimizer(spec)
    for _ in range(2):
        optimizer.apply([tf.constant([2.0])], [weight])
    assert float(weight[0]) == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_in_float64_is_pytorchs_to_the_last_digits(name):
    """Tiny gradients show where epsilon stands: beside the corrected root, not before the correction."""
    rng = np.random.default_rng(0)
    value = rng.standard_normal(5)
    weight, w, m, v = tf.Variable(value), value.copy(), np.zeros(5), np.zeros(5)
    optimizer = build_optimizer(OptimizerSpec(name, 0.01, weight_decay=0.1))
    optimizer.build([weight])
    optimizer.learning_rate.assign(0.0078125)
    for step in range(1, 30):
        g = 1e-7 * rng.standard_normal(5)
        optimizer.apply([tf.constant(g)], [weight])
        if name == "adamw":
            w *= 1.0 - 0.0078125 * 0.1
        else:
            g = g + 0.1 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.0078125 / (1 - 0.9**step) * m / (np.sqrt(v) / math.sqrt(1 - 0.999**step) + 1e-8)
    np.testing.assert_allclose(weight.numpy(), w, rtol=1e-12)


def test_unknown_names_are_refused():
    with pytest.raises(TaskError, match="optimizer is unknown"):
        build_optimizer(OptimizerSpec(name="lion"))
    with pytest.raises(TaskError, match="schedule is unknown"):
        build_optimizer(OptimizerSpec(schedule="cyclic"))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule_follows_its_formula_at_every_step(schedule):
    spec = OptimizerSpec(learning_rate=0.4, schedule=schedule, total_steps=20, warmup_steps=4)
    weight, optimizer = tf.Variable([1.0]), build_optimizer(spec)
    for step in range(23):
        share = min(1.0, (step - 4) / 16)
        decay = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
        factor = (step + 1) / 4 if step < 4 else decay[schedule]
        assert float(tf.convert_to_tensor(optimizer.learning_rate)) == pytest.approx(0.4 * factor, abs=1e-7)
        before = float(weight[0])
        optimizer.apply([tf.ones(1)], [weight])
        assert before - float(weight[0]) == pytest.approx(0.4 * factor, abs=1e-6)
