"""Optimizers and schedules from neutral words, and what is read back from them, against closed forms."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hybridcore.errors import ModelError, TaskError
from hybridcore.protocols import OptimizerSpec
from hybridcore_jax.optimizers import build_optimizer, build_schedule, schedule_factor
from hybridcore_jax.rates import LearningRate, momentum_memory


def train(optimizer, gradients, weight=1.0):
    params = {"w": jnp.asarray(weight, jnp.float32)}
    state = optimizer.init(params)
    path = []
    for gradient in gradients:
        updates, state = optimizer.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        path.append(float(params["w"]))
    return path


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
    spec = OptimizerSpec(name=name, learning_rate=0.1, momentum=0.9, weight_decay=decay)
    assert train(build_optimizer(spec), [2.0, 2.0])[-1] == pytest.approx(after, rel=1e-5)


def test_adam_follows_its_algorithm_in_float64_to_float32_accuracy():
    """Kingma and Ba, algorithm 1; gradients so small that the place of epsilon matters."""
    gradients = 1e-7 * np.random.default_rng(0).standard_normal(30)
    w, m, v, want = 1.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.01 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        want.append(w)
    found = train(build_optimizer(OptimizerSpec("adam", 0.01)), gradients)
    np.testing.assert_allclose(found, want, rtol=3e-7)


def test_unknown_names_are_refused():
    with pytest.raises(TaskError, match="optimizer is unknown"):
        build_optimizer(OptimizerSpec(name="lion"))
    with pytest.raises(TaskError, match="schedule is unknown"):
        build_optimizer(OptimizerSpec(schedule="cyclic"))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule_follows_its_formula_at_every_step(schedule):
    spec = OptimizerSpec(learning_rate=0.4, schedule=schedule, total_steps=20, warmup_steps=4)
    path = [0.0, *train(build_optimizer(spec), [1.0] * 25, weight=0.0)]
    rate = LearningRate(build_schedule(spec), ())
    for step in range(25):
        share = min(1.0, (step - 4) / 16)
        decay = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
        factor = (step + 1) / 4 if step < 4 else decay[schedule]
        assert schedule_factor(spec, step) == pytest.approx(factor, abs=1e-9)
        assert path[step] - path[step + 1] == pytest.approx(0.4 * factor, abs=2e-6)
        assert rate.after(step + 1, ()) == pytest.approx(0.4 * factor, abs=1e-9)


def test_the_rate_is_read_where_it_is_kept():
    params = {"w": jnp.ones(2)}
    schedule = optax.exponential_decay(0.5, 1, 0.5)
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)
    state = injected.init(params)
    rate = LearningRate(None, state)
    for count in range(1, 4):
        _, state = injected.update(params, state, params)
        assert rate.after(count, state) == pytest.approx(0.5 * 0.5 ** (count - 1))
    resumed = optax.adam(schedule)
    state = resumed.init(params)
    for _ in range(3):
        _, state = resumed.update(params, state, params)
    later = LearningRate(schedule, state)
    assert later.after(0, state) == pytest.approx(0.5 * 0.5**3)  # the rate that the next update will have
    assert later.after(2, state) == pytest.approx(0.5 * 0.5**4)
    with pytest.raises(ModelError, match="learning_rate=") as caught:
        LearningRate(None, optax.adam(0.1).init(params))
    assert "inject_hyperparams" in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "beta"),
    [
        (optax.sgd(0.1), 0.0),
        (optax.sgd(0.1, momentum=0.8, nesterov=True), 0.8),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, b1=0.85)), 0.85),
        (optax.masked(optax.adam(0.1), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)), 0.9),
        (optax.inject_hyperparams(optax.adam)(learning_rate=0.1, b1=0.7), 0.7),
        (optax.lbfgs(0.1), 0.0),
    ],
    ids=["sgd", "nesterov", "chain", "masked", "injected", "lbfgs"],
)
def test_momentum_memory_is_found_by_asking_the_optimizer(optimizer, beta):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    found = momentum_memory(optimizer, params, optimizer.init(params))
    assert found == pytest.approx(1.0 / (1.0 - beta), rel=1e-5)
