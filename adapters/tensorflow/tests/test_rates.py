"""Scaled learning rates (F40), adaptive clipping (F69) and overflows (F62), against eager loops."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.configfile import config_from_dict
from hybridcore.injection import parse_faults
from hybridcore.records import read_run
from hybridcore.runner import run_task
from hybridcore_tensorflow import TensorFlowAdapter
from hybridcore_tensorflow.adaptive_clipping import clip_unit

layers = keras.layers


def squares(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0]) - batch[1]), 1)


def net(dtype=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(7, activation="tanh", dtype=dtype), layers.Dense(2, dtype=dtype)]
    )


def batch(seed=1):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((10, k)).astype(np.float32) for k in (5, 2))


class Quartered(keras.optimizers.schedules.LearningRateSchedule):
    """A cosine decay, a quarter of it from the fourth update on."""

    def __init__(self, start):
        self.plain, self.start = keras.optimizers.schedules.CosineDecay(0.05, 20), start

    def __call__(self, step):
        return self.plain(step) * tf.where(tf.cast(step, tf.float32) >= self.start, 0.25, 1.0)


def same_weights(one, two, rtol=1e-5):
    for a, b in zip(one.variables, two.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("kind", [keras.optimizers.SGD, keras.optimizers.AdamW])
@pytest.mark.parametrize("own", ["built", "own step", "own step, traced before"])
def test_f40_a_scaled_schedule_trains_like_the_schedule_times_the_factor(kind, own):
    """A graph that was made before the adapter knows nothing of the factor, and is scaled all the same."""
    models = [net(), net()]
    optimizers = [kind(Quartered(start)) for start in (1000.0, 3.0)]

    @tf.function
    def step(data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(squares(models[0], data))
        variables = models[0].trainable_variables
        optimizers[0].apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    if own == "own step, traced before":
        held = [v.numpy() for v in models[0].variables]
        optimizers[0].build(models[0].trainable_variables)
        state = [v.numpy() for v in optimizers[0].variables]
        step(batch())
        for variables, values in ((models[0].variables, held), (optimizers[0].variables, state)):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
    given = {} if own == "built" else {"train_step": step}
    one = TensorFlowAdapter(models[0], optimizers[0], squares, **given)
    two = TensorFlowAdapter(models[1], optimizers[1], squares)
    for index in range(7):
        if index == 3:
            one.scale_learning_rate(0.25)
        loss, want = (adapter.train_step(batch(index)).loss for adapter in (one, two))
        assert loss == pytest.approx(want, rel=1e-5)
        assert one.learning_rate == pytest.approx(two.learning_rate, rel=1e-5) or index == 2
    same_weights(*models)


def test_f40_a_scaled_velocity_is_that_of_an_optimizer_which_keeps_plain_gradients():
    """Keras' heavy ball holds the rate; scaled, it goes on as PyTorch's would: closed form on one weight."""
    weight, velocity, rate = np.full(1, 2.0), np.zeros(1), 0.1
    variable = tf.Variable([2.0], trainable=True)
    module = tf.Module()
    module.weight = variable
    adapter = TensorFlowAdapter(
        module, keras.optimizers.SGD(0.1, momentum=0.9), lambda m, b: b * m.weight**2 / 2.0
    )
    for index in range(8):
        if index == 3:
            adapter.scale_learning_rate(0.1)
            rate *= 0.1
        adapter.train_step(tf.ones(1))
        velocity = 0.9 * velocity + weight
        weight = weight - rate * velocity
        np.testing.assert_allclose(variable.numpy(), weight, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2, 2)])
@pytest.mark.parametrize("axis", [0, -1])
def test_f69_units_are_clipped_to_the_stated_norm(shape, axis):
    rng = np.random.default_rng(1)
    w, g = rng.standard_normal(shape), rng.standard_normal(shape)
    g *= 10.0 ** np.arange(-3, 3).reshape(-1, *[1] * (len(shape) - 1))
    rows = zip(w, g, strict=True) if len(shape) > 1 else [(w, g)]
    want = np.reshape(
        [b * min(1.0, 0.1 * max(np.linalg.norm(a), 1e-3) / np.linalg.norm(b)) for a, b in rows], shape
    )
    weight, gradient = (tf.constant(np.moveaxis(x, 0, axis), tf.float32) for x in (w, g))
    got = clip_unit(gradient, tf.Variable(weight), axis, tf.constant(0.1)).numpy()
    np.testing.assert_allclose(np.moveaxis(got, axis, 0), want, rtol=1e-5)


def test_f69_the_update_is_that_of_the_clipped_gradient_and_one_more_graph_is_made():
    model, twin = net(), net()
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), squares)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(squares(twin, batch()))
    variables = twin.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        variable.assign_sub(0.1 * clip_unit(gradient, variable, -1, tf.constant(0.02)))
    adapter.clip_adaptively(0.02)
    adapter.train_step(batch())
    same_weights(model, twin)
    made = adapter.traces
    adapter.clip_adaptively(0.01)
    adapter.train_step(batch())
    assert adapter.traces == made
    assert adapter.train_step((np.full((10, 5), np.inf, np.float32), batch()[1])).skipped


def test_f62_an_overflow_in_ones_own_step_lowers_the_scale_and_is_no_trouble():
    model = net("mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=2.0**24)

    @tf.function
    def step(data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.cast(model(data[0]), tf.float32) - data[1]))
            scaled = optimizer.scale_loss(loss)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return loss

    adapter = TensorFlowAdapter(model, optimizer, squares, train_step=step)
    results = [adapter.train_step(batch()) for _ in range(25)]
    assert results[0].overflow and not results[-1].skipped
    assert [r.overflow for r in results] == [r.skipped for r in results]
    overflows = sum(r.overflow for r in results)
    assert float(optimizer.dynamic_scale) == 2.0 ** (24 - overflows)


def test_f40_recovery_rolls_back_and_retries_at_a_smaller_rate(tmp_path):
    """One update is ten thousand times too long; the run goes back, takes half its rate, and ends well."""
    config = config_from_dict(
        {
            "run": {"steps": 120, "framework": "tensorflow", "evaluate_every": 40},
            "task": {"name": "digits-mlp"},
            "predictor": {"name": "none"},
            "recovery": {"snapshot_every": 10, "policy": {"*": {"critical": ["roll-back-and-retry"]}}},
        }
    )
    result = run_task(config, out_dir=tmp_path, faults=parse_faults("spike@60:1e4"))
    assert result.summary["recovery_actions"]["roll-back-and-retry"] == 1
    record = read_run(tmp_path)
    rates = [step["learning_rate"] for step in record.steps]
    before = [r for s, r in zip(record.steps, rates, strict=True) if s["step"] < 60]
    assert before == pytest.approx([0.05] * len(before))
    assert rates[-1] == pytest.approx(0.025)
    assert record.final_loss < record.evaluations[0].loss
