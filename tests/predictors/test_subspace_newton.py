from __future__ import annotations

import array_api_compat.numpy as xp
import attrs
import numpy as np
import pytest
from engine_lab import Scripted, bowl, build, configure, drive, full, predict
from trajectory_lab import change, recursion, remember, window_means

from hybridcore.errors import PredictionError
from hybridcore.plugin_checks import check_class
from hybridcore.predictors.subspace_newton import SubspaceNewton
from hybridcore.protocols import OptimizerSpec

FREE = {"trust": 1e4, "damping": 1e-9}


def make(**options):
    return SubspaceNewton(SubspaceNewton.Config(**{**FREE, **options}))


def measured(predictor, path, loss, horizon=10.0):
    """The change proposed at the end of a path, and the changes at which the loss was measured."""
    points = []

    def measure(buckets):
        points.append(np.concatenate(buckets).astype(np.float64))
        return loss(path[-1] + points[-1])

    history = remember(path, predictor)
    return change(predictor.predict_with(history, horizon, xp, measure)), points


def quadratic(seed, size=12, shift=0.0):
    """A loss, its gradient and its Hessian."""
    root = np.random.default_rng(seed).standard_normal((size, size))
    hessian = root @ root.T / size + shift * np.eye(size)
    centre = np.random.default_rng(seed + 1).standard_normal(size)
    return (
        lambda w: 0.5 * (w - centre) @ hessian @ (w - centre),
        lambda w: hessian @ (w - centre),
        hessian,
    )


def span(path, dimensions):
    """Columns that span the subspace, in the documented order."""
    steps = np.diff(window_means(path), axis=0)
    vectors = [steps[-1], path[-1] - path[-2], *steps[-2::-1]]
    return np.stack(vectors[:dimensions], axis=1)


def wandering(seed=0, steps=20):
    return np.cumsum(0.1 * np.random.default_rng(seed).standard_normal((steps + 1, 12)), axis=0)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_f85_a_quadratic_is_minimised_over_the_subspace_exactly(dimensions):
    path = wandering()
    loss, gradient, hessian = quadratic(3)
    got, points = measured(make(dimensions=dimensions), path, loss)
    basis = span(path, dimensions)
    expected = -basis @ np.linalg.solve(basis.T @ hessian @ basis, basis.T @ gradient(path[-1]))
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.linalg.norm(expected))
    assert len(points) == 1 + 2 * dimensions + dimensions * (dimensions - 1) // 2


def test_f85_it_lands_on_the_optimum_of_two_dimensions():
    adapter = bowl(size=2, condition=30.0, optimizer=OptimizerSpec("sgd", 0.05))
    script = Scripted(full(16), predict(10.0, 4))
    config = configure(groups={"max_relative_jump": 1e3})
    engine, recorder = build(adapter, config, script, make(), [None])
    drive(engine, 20)
    [jump] = recorder.named("jump")
    assert jump["predictor"] == "subspace-newton"
    before = engine._trials.trial.snapshot[0]["w"] if engine._trials.trial else None
    assert before is not None
    assert np.linalg.norm(adapter.params["w"] - adapter.optimum) < 1e-3 * np.linalg.norm(
        before - adapter.optimum
    )


def test_f83_each_measurement_is_booked_as_a_probe():
    def probes(predictor, **action):
        script = Scripted(full(16), attrs.evolve(predict(10.0, 4), **action))
        engine, recorder = build(bowl(), configure(), script, predictor, [None])
        drive(engine, 21)
        assert engine.counts.jumps >= 1
        costs = [p["cost"] for p in recorder.named("probe")]
        assert engine.counts.cost == pytest.approx(engine.counts.real_steps + sum(costs))
        return len(costs)

    from hybridcore.predictors.drift import Drift

    plain = probes(Drift())
    assert probes(make(dimensions=2)) == plain + 1 + 4 + 1
    assert probes(make(dimensions=2), continuous=True) == probes(Drift(), continuous=True)


def test_f85_measuring_leaves_the_weights_as_they_are():
    adapter = bowl()
    seen = []
    inner = adapter.write_params
    adapter.write_params = lambda b: seen.append(b) or inner(b)
    predictor = make()
    engine, _ = build(adapter, configure(), Scripted(), predictor, [None])
    drive(engine, 16)
    before = adapter.params["w"].copy()
    engine._leaps.prediction(predictor, 10.0, False)
    np.testing.assert_array_equal(adapter.params["w"], before)


@pytest.mark.parametrize("trust", [0.3, 1.0, 3.0])
def test_f85_within_the_trust_radius_it_is_the_best_point(trust):
    """Against the best of a fine grid on the disc; the curvature is positive there."""
    path = wandering(1)
    loss, _, _ = quadratic(5)
    got, _ = measured(make(trust=trust), path, loss)
    basis, _ = np.linalg.qr(span(path, 2))
    radius = trust * 10.0 / 4.0 * np.linalg.norm(span(path, 1))
    turns = np.linspace(0.0, 2.0 * np.pi, 721)
    disc = [
        basis @ (radius * share * np.array([np.cos(t), np.sin(t)]))
        for t in turns
        for share in np.linspace(0.0, 1.0, 41)
    ]
    best = min(loss(path[-1] + d) for d in disc)
    assert np.linalg.norm(got) <= radius * (1.0 + 1e-5)
    assert loss(path[-1] + got) <= best + 1e-6 * abs(best)


def test_f85_on_a_saddle_it_still_goes_down_within_the_radius():
    path = wandering(2)
    loss, _, _ = quadratic(7, shift=-3.0)
    got, _ = measured(make(trust=1.0), path, loss)
    assert loss(path[-1] + got) < loss(path[-1])
    assert np.linalg.norm(got) <= 10.0 / 4.0 * np.linalg.norm(span(path, 1)) * (1.0 + 1e-5)


@pytest.mark.parametrize("loss", [lambda w: 1.0, lambda w: np.nan])
def test_f85_without_descent_it_refuses(loss):
    with pytest.raises(PredictionError, match="no descent"):
        measured(make(), wandering(), loss)


def test_f85_without_probes_it_is_the_drift():
    path = recursion(20)
    predictor = make()
    got = change(predictor.predict(remember(path, predictor), 10.0, xp))
    np.testing.assert_allclose(got, 10.0 / 4.0 * np.diff(window_means(path), axis=0)[-1], atol=1e-5)


def test_a_predict_with_of_another_form_is_rejected():
    from hybridcore.errors import PluginError

    bent = type("Bent", (SubspaceNewton,), {"predict_with": lambda self, history: None})
    with pytest.raises(PluginError, match="cannot be called as the protocol says"):
        check_class("predictor", bent, "test")
