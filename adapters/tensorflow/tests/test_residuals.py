"""Derivatives of residuals along changes of the weights, and what a run gains by them."""

from __future__ import annotations

import attrs
import keras
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.configfile import config_from_dict
from hybridcore.errors import BatchError, DeltaError, ModelError
from hybridcore.protocols import ResidualAdapter
from hybridcore.records import read_run
from hybridcore.runner import run_task
from hybridcore.tasks.convection_pinn import ConvectionPinn
from hybridcore.tasks.poisson_pinn import PoissonPinn
from hybridcore_tensorflow import TensorFlowAdapter
from hybridcore_tensorflow.framework import FRAMEWORK
from hybridcore_tensorflow.models import build_model
from hybridcore_tensorflow.variables import trainable

SMALL = {"points": 24, "edge_points": 8, "width": 6, "depth": 2}
pinns = pytest.mark.parametrize("cls", [ConvectionPinn, PoissonPinn])


def directions(adapter, count):
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(adapter.layout.total).astype(np.float32),) for _ in range(count)]


def network(weights, points):
    """The tanh network in float64: values, gradients (n, 2) by the chain rule."""
    hidden, tangents = points, [np.tile(row, (len(points), 1)) for row in np.eye(2)]
    for index in range(3):
        weight = weights[f"layers.{index}.weight"]
        hidden = hidden @ weight.T + weights[f"layers.{index}.bias"]
        tangents = [t @ weight.T for t in tangents]
        if index < 2:
            hidden = np.tanh(hidden)
            tangents = [(1.0 - hidden**2) * t for t in tangents]
    return hidden[:, 0], np.stack(tangents, 1)[:, :, 0]


def stated(cls, weights, batch, step=1e-4):
    """Residuals of the equations, in float64, second derivatives by differences of first ones."""
    batch = [np.asarray(part, np.float64) for part in batch]
    if cls is ConvectionPinn:
        interior, start, value, left, right = batch
        slopes = network(weights, interior)[1]
        edge = [network(weights, start)[0] - value, network(weights, left)[0] - network(weights, right)[0]]
        parts = [10.0 * slopes[:, 0] + slopes[:, 1], *edge]
        weighting = [1.0, 1.0, 1.0]
    else:
        interior, source, edge, value = batch
        second = sum(
            (network(weights, interior + step * e)[1] - network(weights, interior - step * e)[1])[:, axis]
            for axis, e in enumerate(np.eye(2))
        )
        parts = [second / (2 * step) + source, network(weights, edge)[0] - value]
        weighting = [1.0, cls.Config(**SMALL).boundary_weight]
    total = sum(map(len, parts))
    return np.concatenate([p * np.sqrt(w * total / len(p)) for p, w in zip(parts, weighting, strict=True)])


@pinns
def test_residuals_and_products_equal_float64_differences(cls):
    run = FRAMEWORK.build(cls(cls.Config(**SMALL)).problem(seed=0), "cpu")
    adapter, batch = run.adapter, next(run.batches)
    assert isinstance(adapter, ResidualAdapter)
    assert "residuals" in adapter.capabilities
    before = adapter.read_params()
    changes = directions(adapter, 3)
    residuals, products = adapter.linearise_residuals(batch, changes)
    assert residuals.dtype == products.dtype == np.float64
    assert np.square(residuals) == pytest.approx(adapter.probe_loss(batch), rel=1e-5)

    def moved(change, length):
        wide = (before[0].astype(np.float64) + length * change[0],)
        return adapter.layout.unpack(wide, np)

    scale = np.abs(residuals).max()
    assert residuals == pytest.approx(stated(cls, moved(changes[0], 0.0), batch), abs=1e-4 * scale)
    h = 1e-5
    expected = np.stack(
        [(stated(cls, moved(d, h), batch) - stated(cls, moved(d, -h), batch)) / (2 * h) for d in changes],
        axis=1,
    )
    assert products == pytest.approx(expected, rel=1e-3, abs=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(adapter.read_params()[0], before[0])


@pinns
def test_products_are_the_transpose_of_the_reverse_mode(cls):
    """``u . (J v) = (J^T u) . v`` for random u and v."""
    problem = cls(cls.Config(**SMALL)).problem(seed=0)
    run, built = FRAMEWORK.build(problem, "cpu"), build_model(problem)
    adapter, batch = run.adapter, next(run.batches)
    changes = directions(adapter, 2)
    residuals, products = adapter.linearise_residuals(batch, changes)
    u = np.random.default_rng(1).standard_normal(len(residuals))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(tf.cast(u, tf.float32) * built.residual_fn(built.model, batch))
    named = trainable(built.model)
    pulled = dict(
        zip(named, tape.gradient(value, list(named.values()), unconnected_gradients="zero"), strict=True)
    )
    for change, product in zip(changes, products.T, strict=True):
        pieces = adapter.layout.unpack(change, np)
        back = sum(np.sum(pulled[name].numpy().astype(np.float64) * piece) for name, piece in pieces.items())
        assert u @ product == pytest.approx(back, rel=1e-3, abs=1e-3)


def test_any_number_of_changes_is_traced_once():
    run = FRAMEWORK.build(PoissonPinn(PoissonPinn.Config(**SMALL)).problem(seed=0), "cpu")
    adapter, batch = run.adapter, next(run.batches)
    adapter.linearise_residuals(batch, directions(adapter, 1))
    residuals, nothing = adapter.linearise_residuals(batch, [])
    traces = adapter.traces
    for count in (0, 1, 4, 2):
        again, products = adapter.linearise_residuals(batch, directions(adapter, count))
        assert products.shape == (len(residuals), count)
        np.testing.assert_allclose(again, residuals, rtol=1e-5, atol=1e-6)
    assert nothing.shape == (len(residuals), 0)
    assert adapter.traces == traces


def test_examples_are_counted_by_their_losses():
    """Probes are charged by that count; the batch's first array holds the interior points alone."""
    run = FRAMEWORK.build(PoissonPinn(PoissonPinn.Config(**SMALL)).problem(seed=0), "cpu")
    batch = next(run.batches)
    assert run.adapter.train_step(batch).n_examples == len(run.adapter.probe_loss(batch)) == 24 + 8


def squares(model, batch, training=False):
    return tf.square(gap(model, batch, training))


def gap(model, batch, training=False):
    return model(batch[0], training=training)[:, 0] - batch[1]


def regression(residual_fn):
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    return TensorFlowAdapter(model, keras.optimizers.SGD(0.1), squares, residual_fn=residual_fn)


def test_a_keras_model_with_batch_norm_and_dropout_is_left_as_it_was():
    adapter = regression(gap)
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((16, 2)).astype(np.float32), np.ones(16, np.float32)
    former = [v.numpy() for v in adapter.model.variables]
    residuals, products = adapter.linearise_residuals(batch, directions(adapter, 2))
    np.testing.assert_allclose(np.square(residuals), adapter.probe_loss(batch), rtol=1e-5)
    for index, change in enumerate(directions(adapter, 2)):
        ends = []
        for length in (1e-2, -1e-2):
            with adapter.weights((adapter.read_params()[0] + np.float32(length) * change[0],)):
                ends.append(adapter.linearise_residuals(batch, [])[0])
        np.testing.assert_allclose(products[:, index], (ends[0] - ends[1]) / 2e-2, atol=2e-3)
    for variable, value in zip(adapter.model.variables, former, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_what_cannot_be_linearised_is_refused():
    adapter = regression(None)
    batch = np.ones((4, 2), np.float32), np.ones(4, np.float32)
    assert "residuals" not in adapter.capabilities
    with pytest.raises(ModelError, match="residuals"):
        adapter.linearise_residuals(batch, [])
    scalar = regression(lambda m, b, training: tf.reduce_mean(gap(m, b, training)))
    with pytest.raises(BatchError, match="no vector"):
        scalar.linearise_residuals(batch, [])
    given = regression(gap)
    with pytest.raises(DeltaError):
        given.linearise_residuals(batch, [(np.ones(3, np.float32),)])
    with pytest.raises(BatchError):
        given.linearise_residuals((batch[0][:, :1], batch[1]), [])


def test_f85_gauss_newton_jumps_lower_the_training_loss_of_a_pinn(tmp_path):
    config = config_from_dict(
        {
            "run": {"steps": 200, "evaluate_every": 200, "framework": "tensorflow"},
            "task": {"name": "poisson-pinn", "learning_rate": 1e-2, **SMALL},
            "predictor": {"name": "gauss-newton"},
            "controller": {"name": "fixed", "fixed": {"full_steps": 10, "correct_steps": 10}},
            "history": {"window": 5},
            "probe": {"tentative": False},
            "verdict": {"confidence_z": 1e6, "guard_factor": 100.0},
            "budget": {"share": 1.0, "backoff_steps": 0},
        }
    )
    hybrid = run_task(config, out_dir=tmp_path / "hybrid")
    longer = attrs.evolve(config, run=attrs.evolve(config.run, steps=int(hybrid.summary["cost"])))
    run_task(longer, arm="baseline", out_dir=tmp_path / "plain")
    assert hybrid.summary["jumps"] >= 12
    # 1 + 2k passes with k from 3 to 6, a measurement and a probe for the verdict at least, each 1/3.
    assert hybrid.summary["cost"] >= 200 + hybrid.summary["jumps"] * (1 + 2 * 3 + 2) / 3
    ends = [
        np.median([step["loss"] for step in read_run(tmp_path / arm / "metrics.jsonl").steps[-20:]])
        for arm in ("hybrid", "plain")
    ]
    assert ends[0] < 0.9 * ends[1], "at equal cost"
