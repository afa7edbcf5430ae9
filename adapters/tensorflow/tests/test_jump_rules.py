"""What a jump and a rollback do to optimizer, schedule and statistics, against formulas."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.errors import BatchError, SnapshotError
from hybridcore.protocols import OptimizerSpec
from hybridcore_tensorflow import TensorFlowAdapter
from hybridcore_tensorflow.optimizers import build_optimizer

layers = keras.layers


def squares(model, batch, training=False):
    return tf.reduce_mean(tf.square(model(batch[0], training=training) - batch[1]), 1)


def net():
    return keras.Sequential([keras.Input((5,)), layers.Dense(7, activation="tanh"), layers.Dense(2)])


def normed():
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )


def batch(n=10, seed=1):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((n, k)).astype(np.float32) for k in (5, 2))


def flat(variables):
    return np.concatenate([v.numpy().astype(np.float64).ravel() for v in variables])


def gradient(model, data):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(squares(model, data))
    return np.concatenate(
        [
            g.numpy().astype(np.float64).ravel()
            for g in tape.gradient(loss, [v.value for v in model.trainable_variables])
        ]
    )


def jump(adapter, size=0.01):
    deltas = tuple(np.full_like(b, size) for b in adapter.read_params())
    adapter.apply_delta(deltas)
    adapter.after_jump(deltas)


@pytest.mark.parametrize("kind", ["keras", "spec"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_velocity_is_scaled_by_the_cosine_with_the_next_gradient(sign, kind):
    """F59: v' = momentum * max(0, cos(v, g)) * v + g; Keras' own velocity is -rate times that."""
    model = net()
    if kind == "keras":
        optimizer, unit = keras.optimizers.SGD(0.01, momentum=0.9), -0.01
    else:
        optimizer, unit = build_optimizer(OptimizerSpec("momentum", 0.01, momentum=0.9)), 1.0
    adapter = TensorFlowAdapter(model, optimizer, squares)
    held = optimizer.momentums if kind == "keras" else optimizer.heavy_ball
    for _ in range(3):
        adapter.train_step(batch())
    for velocity in held:
        velocity.assign(sign * velocity)
    jump(adapter)
    assert adapter.state_dict()["pending"] is True
    old, fresh = flat(held) / unit, gradient(model, batch(seed=2))
    cosine = old @ fresh / (np.linalg.norm(old) * np.linalg.norm(fresh))
    assert (cosine > 0) == (sign > 0)
    adapter.train_step(batch(seed=2))
    want = 0.9 * max(0.0, cosine) * old + fresh
    np.testing.assert_allclose(flat(held) / unit, want, rtol=1e-3, atol=1e-5)
    assert adapter.state_dict()["pending"] is False
    old, fresh = flat(held) / unit, gradient(model, batch(seed=3))
    adapter.train_step(batch(seed=3))
    np.testing.assert_allclose(flat(held) / unit, 0.9 * old + fresh, rtol=1e-3, atol=1e-5)


def test_a_rollback_and_a_skipped_step_treat_the_waiting_rule_rightly():
    adapter = TensorFlowAdapter(net(), keras.optimizers.SGD(0.01, momentum=0.9), squares)
    adapter.train_step(batch())
    point = adapter.snapshot()
    jump(adapter)
    x, y = batch()
    assert adapter.train_step((x, y * np.nan)).skipped
    assert adapter.state_dict()["pending"] is True
    adapter.restore(point)
    assert adapter.state_dict()["pending"] is False


def test_adam_keeps_moments_and_step_count():
    """F59."""
    model, optimizer = net(), keras.optimizers.Adam(0.01)
    adapter = TensorFlowAdapter(model, optimizer, squares)
    for _ in range(3):
        adapter.train_step(batch())
    jump(adapter, 0.1)
    old, fresh = flat(optimizer._momentums), gradient(model, batch(seed=2))
    adapter.train_step(batch(seed=2))
    np.testing.assert_allclose(flat(optimizer._momentums), 0.9 * old + 0.1 * fresh, rtol=1e-4, atol=1e-6)
    assert adapter.iterations == 4


def test_restore_turns_the_schedule_back():
    """The rate is a function of the iteration count, which belongs to the snapshot."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    adapter = TensorFlowAdapter(net(), keras.optimizers.SGD(schedule), squares)
    rates = []
    for _ in range(3):
        rates.append(adapter.learning_rate)
        adapter.train_step(batch())
        if len(rates) == 2:
            point = adapter.snapshot()
    assert rates == pytest.approx([0.1, 0.05, 0.025])
    adapter.restore(point)
    assert adapter.learning_rate == pytest.approx(0.025)
    assert adapter.snapshot_nbytes() == point.nbytes


def test_foreign_objects_are_no_snapshots():
    adapter = TensorFlowAdapter(net(), keras.optimizers.SGD(0.1), squares)
    with pytest.raises(SnapshotError, match="no snapshot"):
        adapter.restore({"weight": 1})


def test_probe_normalises_by_the_probe_batch_and_leaves_the_statistics():
    """Equals a by-hand evaluation with the batch's biased variance, whatever the moving statistics."""
    model = normed()
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), squares)
    norm = model.layers[1]
    norm.moving_mean.assign(50.0 * tf.ones(4))
    x, y = batch()
    kernel, bias = (v.numpy().astype(np.float64) for v in model.layers[0].weights)
    hidden = x @ kernel + bias
    normal = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + norm.epsilon)
    kernel, bias = (v.numpy().astype(np.float64) for v in model.layers[3].weights)
    want = np.square(normal @ kernel + bias - y).mean(1)
    np.testing.assert_allclose(adapter.probe_loss((x, y)), want, rtol=1e-4)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), 50.0)
    assert "call" not in vars(norm)


def test_probe_respects_frozen_norms():
    model = normed()
    norm = model.layers[1]
    norm.trainable = False
    norm.moving_mean.assign(3.0 * tf.ones(4))
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), squares)
    assert "batch-statistics" not in adapter.capabilities
    data = batch()
    want = squares(model, data, training=False).numpy()
    np.testing.assert_allclose(adapter.probe_loss(data), want, rtol=1e-6)


def test_refreshed_statistics_are_means_over_the_batches():
    """F86: closed form from float64 moments of the layer's inputs."""
    model = normed()
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), squares)
    adapter.train_step(batch())
    batches = [batch(seed=s) for s in (4, 5, 6)]
    adapter.refresh_statistics(iter(batches))
    kernel, bias = (v.numpy().astype(np.float64) for v in model.layers[0].weights)
    inputs = [x @ kernel + bias for x, _ in batches]
    norm = model.layers[1]
    np.testing.assert_allclose(norm.moving_mean.numpy(), np.mean([h.mean(0) for h in inputs], 0), atol=1e-5)
    np.testing.assert_allclose(
        norm.moving_variance.numpy(), np.mean([h.var(0) for h in inputs], 0), rtol=1e-4
    )
    assert norm.momentum == 0.99
    before = [v.numpy() for v in model.variables]
    adapter.refresh_statistics([])
    adapter.refresh_statistics([(np.full((3, 5), np.nan, np.float32), np.ones((3, 2), np.float32))])
    with pytest.raises(BatchError):
        adapter.refresh_statistics([(np.ones((3, 9), np.float32), np.ones((3, 2), np.float32))])
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize(
    ("make", "memory"),
    [
        (lambda: keras.optimizers.SGD(0.1), 1.0),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.75), 4.0),
        (lambda: keras.optimizers.Adam(0.1, beta_1=0.5), 2.0),
        (lambda: keras.optimizers.RMSprop(0.1, momentum=0.5), 2.0),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)), 10.0),
        (lambda: build_optimizer(OptimizerSpec("adamw", 0.1)), 10.0),
    ],
)
def test_rate_and_memory_are_read_from_the_optimizer(make, memory):
    adapter = TensorFlowAdapter(net(), make(), squares)
    assert adapter.learning_rate == pytest.approx(0.1)
    assert adapter.momentum_memory == pytest.approx(memory)
    adapter.optimizer.learning_rate = 0.025
    assert adapter.learning_rate == pytest.approx(0.025)


def test_moments_equal_numpy():
    optimizer = keras.optimizers.Adam(0.01)
    adapter = TensorFlowAdapter(net(), optimizer, squares)
    assert set(adapter.moments().values()) == {0.0}
    for seed in range(3):
        adapter.train_step(batch(seed=seed))
    first, second = flat(optimizer._momentums), flat(optimizer._velocities)
    want = {"m_mean": first.mean(), "m_std": first.std(), "v_mean": second.mean(), "v_std": second.std()}
    assert adapter.moments() == pytest.approx(want, rel=1e-6)
