"""Derivatives of residuals along changes of the weights, and what a run gains by them."""

from __future__ import annotations

import math

import attrs
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_lab import data, loss_fn, mlp

from hybridcore.configfile import config_from_dict
from hybridcore.errors import BatchError, DeltaError, ModelError
from hybridcore.protocols import ResidualAdapter
from hybridcore.records import read_run
from hybridcore.runner import run_task
from hybridcore.tasks.convection_pinn import ConvectionPinn
from hybridcore.tasks.poisson_pinn import PoissonPinn
from hybridcore_jax import JaxAdapter
from hybridcore_jax.framework import FRAMEWORK

SMALL = {"points": 24, "edge_points": 8, "width": 6, "depth": 2}


def network(weights, points):
    """The tanh network in float64, with derivatives along both axes by the chain rule: (value, u_x, u_y)."""
    hidden, tangents = points, [np.tile(row, (len(points), 1)) for row in np.eye(2)]
    for index in range(3):
        weight = weights[f"layers.{index}.weight"]
        hidden = hidden @ weight.T + weights[f"layers.{index}.bias"]
        tangents = [t @ weight.T for t in tangents]
        if index < 2:
            hidden = np.tanh(hidden)
            tangents = [(1.0 - hidden**2) * t for t in tangents]
    return hidden[:, 0], tangents[0][:, 0], tangents[1][:, 0]


def convection(weights, batch, beta=10.0):
    interior, start, value, left, right = batch
    _, u_x, u_t = network(weights, interior)
    parts = (
        beta * u_x + u_t,
        network(weights, start)[0] - value,
        network(weights, left)[0] - network(weights, right)[0],
    )
    total = sum(map(len, parts))
    return np.concatenate([p * math.sqrt(total / len(p)) for p in parts])


def poisson(weights, batch, step=1e-3):
    interior, source, edge, value = batch
    second = sum(
        (network(weights, interior + step * e)[1 + a] - network(weights, interior - step * e)[1 + a])
        / (2.0 * step)
        for a, e in enumerate(np.eye(2))
    )
    n, m = len(interior), len(edge)
    return np.concatenate(
        [
            (second + source) * math.sqrt((n + m) / n),
            (network(weights, edge)[0] - value) * math.sqrt(100.0 * (n + m) / m),
        ]
    )


@pytest.mark.parametrize(("cls", "truth"), [(ConvectionPinn, convection), (PoissonPinn, poisson)])
def test_residuals_and_products_are_those_of_float64_differences(cls, truth):
    problem = cls(cls.Config(**SMALL)).problem(seed=0)
    run = FRAMEWORK.build(problem, "cpu")
    adapter, batch = run.adapter, next(run.batches)
    assert "residuals" in adapter.capabilities and isinstance(adapter, ResidualAdapter)
    rng = np.random.default_rng(0)
    directions = [(rng.standard_normal(adapter.layout.total).astype(np.float32),) for _ in range(3)]
    before = adapter.read_params()
    residuals, products = adapter.linearise_residuals(batch, directions)
    assert all(np.array_equal(a, b) for a, b in zip(before, adapter.read_params(), strict=True))
    np.testing.assert_allclose(np.square(residuals), adapter.probe_loss(batch), rtol=1e-5)

    weights = {name: w.astype(np.float64) for name, w in problem.weights.items()}
    wide = [np.asarray(a, np.float64) for a in batch]
    np.testing.assert_allclose(residuals, truth(weights, wide), rtol=1e-4, atol=1e-4)
    assert adapter.train_step(batch).loss == pytest.approx(np.mean(truth(weights, wide) ** 2), rel=1e-5)
    for k, direction in enumerate(directions):
        change = adapter.layout.unpack(direction, np)
        ends = [truth({n: w + s * change[n] for n, w in weights.items()}, wide) for s in (1e-5, -1e-5)]
        expected = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(products[:, k], expected, rtol=1e-3, atol=1e-4 * abs(expected).max())


def test_fewer_directions_than_before_trace_nothing():
    run = FRAMEWORK.build(ConvectionPinn(ConvectionPinn.Config(**SMALL)).problem(seed=0), "cpu")
    adapter, batch = run.adapter, next(run.batches)
    rng = np.random.default_rng(0)
    directions = [(rng.standard_normal(adapter.layout.total).astype(np.float32),) for _ in range(4)]
    for count in (2, 4):  # more than ever before: traced once each
        adapter.linearise_residuals(batch, directions[:count])
    assert adapter._lineariser.traced == 2
    _, whole = adapter.linearise_residuals(batch, directions)
    for count in (3, 0, 1, 4):
        adapter.apply_delta(directions[0], 0.0)
        residuals, products = adapter.linearise_residuals(batch, directions[:count])
        np.testing.assert_allclose(products, whole[:, :count], rtol=1e-5, atol=1e-5 * abs(whole).max())
        assert products.shape == (residuals.size, count)
    assert adapter._lineariser.traced == 2


def test_frozen_parameters_and_states_take_no_part():
    """Closed form: r = scale * (a x + b) with b frozen, so that dr = scale * x da."""

    def residual_fn(params, batch, *, state):
        return state["scale"] * (params["a"] * batch + params["b"]), state

    def squares(params, batch, *, state):
        residuals, state = residual_fn(params, batch, state=state)
        return jnp.square(residuals), state

    adapter = JaxAdapter(
        {"a": jnp.asarray([2.0]), "b": jnp.asarray([1.0])},
        optax.sgd(0.1),
        squares,
        state={"scale": jnp.asarray(3.0)},
        learning_rate=0.1,
        trainable=lambda name: name == "a",
        residual_fn=residual_fn,
    )
    x = jnp.arange(4.0)
    residuals, products = adapter.linearise_residuals(x, [(np.asarray([0.5], np.float32),)])
    assert residuals.tolist() == [3.0, 9.0, 15.0, 21.0]
    assert products.tolist() == [[0.0], [1.5], [3.0], [4.5]]


def test_mistakes_are_told():
    plain = JaxAdapter(mlp(), optax.sgd(0.1), loss_fn, learning_rate=0.1)
    assert "residuals" not in plain.capabilities
    with pytest.raises(ModelError, match="residual_fn"):
        plain.linearise_residuals(data()[0], [])
    run = FRAMEWORK.build(PoissonPinn(PoissonPinn.Config(**SMALL)).problem(seed=0), "cpu")
    with pytest.raises(DeltaError):
        run.adapter.linearise_residuals(next(run.batches), [(np.zeros(3, np.float32),)])
    with pytest.raises(BatchError):
        run.adapter.linearise_residuals((jnp.zeros((2, 2)),), [])


def test_f85_gauss_newton_jumps_lower_the_training_loss_of_a_pinn_and_are_booked(tmp_path):
    config = config_from_dict(
        {
            "run": {"steps": 200, "evaluate_every": 100, "framework": "jax"},
            "task": {"name": "convection-pinn", "learning_rate": 1e-2, **SMALL},
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
    assert hybrid.summary["jumps"] >= 8
    ends = [
        np.median([step["loss"] for step in read_run(tmp_path / arm / "metrics.jsonl").steps[-30:]])
        for arm in ("hybrid", "plain")
    ]
    assert ends[0] < 0.9 * ends[1], "at equal cost"
