from __future__ import annotations

import math

import numpy as np
import pytest
from engine_lab import bits, bowl, clouds

from hybridcore.errors import BatchError, DeltaError, ModelError, SnapshotError, TaskError
from hybridcore.layout import ParamGroup
from hybridcore.protocols import Adapter, OptimizerSpec, Problem
from hybridcore.reference import FRAMEWORK, Quadratic, ReferenceAdapter, SoftmaxRegression, scheduled_rate


def numeric_gradient(model, params, batch, h=1e-6):
    found = {}
    for name, value in params.items():
        g = np.zeros_like(value)
        for i in np.ndindex(value.shape):
            kept = value[i]
            value[i] = kept + h
            up = model.losses(params, batch).mean()
            value[i] = kept - h
            down = model.losses(params, batch).mean()
            value[i] = kept
            g[i] = (up - down) / (2 * h)
        found[name] = g
    return found


def test_softmax_gradient_against_finite_differences():
    rng = np.random.default_rng(0)
    params = {"weight": rng.standard_normal((4, 5)), "bias": rng.standard_normal(4)}
    batch = rng.standard_normal((7, 5)), rng.integers(0, 4, 7)
    model = SoftmaxRegression()
    for name, g in numeric_gradient(model, params, batch).items():
        np.testing.assert_allclose(model.gradient(params, batch)[name], g, atol=1e-8)


def test_softmax_losses_are_minus_the_log_probability():
    rng = np.random.default_rng(1)
    params = {"weight": rng.standard_normal((3, 4)), "bias": rng.standard_normal(3)}
    x, y = rng.standard_normal((6, 4)), rng.integers(0, 3, 6)
    p = np.exp(x @ params["weight"].T + params["bias"])
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(SoftmaxRegression().losses(params, (x, y)), -np.log(p[np.arange(6), y]))


def test_quadratic_gradient_against_finite_differences():
    rng = np.random.default_rng(2)
    model = Quadratic(np.array([0.1, 1.0, 3.0]), rng.standard_normal(3), 0.0, rng)
    params = {"w": rng.standard_normal(3)}
    np.testing.assert_allclose(
        model.gradient(params, None)["w"], numeric_gradient(model, params, None)["w"], atol=1e-8
    )


def quadratic_steps(optimizer, steps):
    adapter = bowl(size=4, optimizer=optimizer)
    h, target, w = adapter.curvature, adapter.optimum, adapter.params["w"].copy()
    for _ in range(steps):
        adapter.train_step(None)
    return adapter.params["w"], h, target, w


def test_sgd_on_a_quadratic_has_a_closed_form():
    got, h, target, w = quadratic_steps(OptimizerSpec("sgd", 0.3), 9)
    np.testing.assert_allclose(got, target + (1 - 0.3 * h) ** 9 * (w - target), rtol=1e-12)


def test_momentum_against_its_recurrence_as_a_matrix_power():
    got, h, target, w = quadratic_steps(OptimizerSpec("momentum", 0.1, momentum=0.8), 9)
    for i in range(4):
        # (gap, velocity) -> (gap - a (b v + h gap), b v + h gap)
        step = np.array([[1 - 0.1 * h[i], -0.1 * 0.8], [h[i], 0.8]])
        gap = np.linalg.matrix_power(step, 9) @ np.array([w[i] - target[i], 0.0])
        assert got[i] - target[i] == pytest.approx(gap[0], rel=1e-10)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_against_torch(name, decay):
    torch = pytest.importorskip("torch")
    got, h, target, w = quadratic_steps(OptimizerSpec(name, 0.05, weight_decay=decay), 12)
    p = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    optimizer = kind([p], lr=0.05, weight_decay=decay)
    h, target = torch.tensor(h), torch.tensor(target)
    for _ in range(12):
        optimizer.zero_grad()
        (0.5 * h * (p - target) ** 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(got, p.detach().numpy(), rtol=1e-12)


def test_the_first_adam_step_has_the_length_of_the_learning_rate():
    got, h, target, w = quadratic_steps(OptimizerSpec("adam", 0.05), 1)
    np.testing.assert_allclose(got - w, -0.05 * np.sign(h * (w - target)), rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, *[0.5 + 0.5 * math.cos(math.pi * k / 4) for k in range(4)]]),
    ],
)
def test_f59_the_schedule_is_followed_step_by_step(schedule, rates):
    spec = OptimizerSpec("sgd", 2.0, schedule=schedule, warmup_steps=4, total_steps=8)
    assert [scheduled_rate(spec, s) for s in range(8)] == pytest.approx([2.0 * r for r in rates])
    adapter = bowl(size=2, optimizer=spec)
    for rate in rates:
        before = adapter.params["w"].copy()
        gradient = adapter.curvature * (before - adapter.optimum)
        adapter.train_step(None)
        np.testing.assert_allclose(adapter.params["w"], before - 2.0 * rate * gradient, rtol=1e-12)
        assert adapter.learning_rate == pytest.approx(2.0 * rate)


def test_it_is_an_adapter_and_hands_out_copies():
    adapter = bowl()
    assert isinstance(adapter, Adapter)
    weights = adapter.read_params()
    weights[0][...] = 7.0
    assert not np.any(adapter.params["w"] == 7.0)
    assert weights[0].dtype == np.float64
    again = adapter.read_params(weights)
    assert again[0] is weights[0]
    np.testing.assert_array_equal(again[0], adapter.params["w"])


def test_add_params_is_a_weighted_sum():
    adapter = bowl()
    start = (np.arange(20, dtype=np.float32),)
    w = adapter.params["w"]
    got = adapter.add_params((start[0].copy(),), 0.5, -2.0)
    np.testing.assert_allclose(got[0], -2.0 * start[0] + 0.5 * w, rtol=1e-6)


def test_apply_delta_scales_per_group_and_refuses_what_does_not_fit():
    adapter, _, _ = clouds()
    before = {n: v.copy() for n, v in adapter.params.items()}
    delta = adapter.layout.pack({n: np.ones(v.shape, np.float32) for n, v in before.items()}, adapter.xp)
    adapter.apply_delta(delta, 2.0, {ParamGroup.BIAS: 0.25})
    np.testing.assert_allclose(adapter.params["weight"] - before["weight"], 2.0)
    np.testing.assert_allclose(adapter.params["bias"] - before["bias"], 0.5)
    kept = adapter.params["weight"].copy()
    with pytest.raises(DeltaError):
        adapter.apply_delta((delta[0][:-1],))
    np.testing.assert_array_equal(adapter.params["weight"], kept)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
def test_f82_a_snapshot_brings_weights_moments_clock_and_noise_back(name):
    spec = OptimizerSpec(name, 0.05, schedule="cosine", total_steps=30)
    adapter = bowl(noise=0.3, optimizer=spec)
    for _ in range(5):
        adapter.train_step(None)
    adapter.after_jump(adapter.read_params())
    snapshot = adapter.snapshot()
    paths = []
    for _ in range(3):
        adapter.restore(snapshot)
        path = []
        for _ in range(6):
            adapter.train_step(None)
            path.append([adapter.params["w"].copy(), np.full(20, adapter.learning_rate)])
        paths.append(path)
    np.testing.assert_array_equal(paths[0], paths[1])
    np.testing.assert_array_equal(paths[0], paths[2])
    assert not np.array_equal(paths[0][0], paths[0][5])


def test_f82_a_snapshot_of_another_model_changes_nothing():
    adapter, other = bowl(optimizer=OptimizerSpec("momentum", 0.1)), bowl(size=3)
    other.train_step(None)
    adapter.train_step(None)
    adapter.train_step(None)
    before = adapter.snapshot()
    with pytest.raises(SnapshotError, match="does not fit"):
        adapter.restore(other.snapshot())
    assert bits(adapter.snapshot()) == bits(before)


def test_f82_snapshot_bytes_are_those_of_the_arrays():
    adapter = bowl(size=10, optimizer=OptimizerSpec("adam", 0.1))
    assert adapter.snapshot_nbytes() == 80
    adapter.train_step(None)
    assert adapter.snapshot_nbytes() == 3 * 80


def test_f41_a_step_that_is_not_finite_changes_nothing():
    adapter, batches, _ = clouds(optimizer=OptimizerSpec("adam", 0.1))
    adapter.train_step(next(batches))
    x, y = next(batches)
    before = adapter.snapshot()
    result = adapter.train_step((np.full_like(x, np.nan), y))
    assert result.skipped and not math.isfinite(result.loss)
    assert bits(adapter.snapshot()) == bits(before)


@pytest.mark.parametrize("batch", [None, (np.zeros((3, 2)), np.zeros(3, int)), 5])
def test_a_batch_of_the_wrong_form_is_named(batch):
    adapter, _, _ = clouds()
    with pytest.raises(BatchError, match="form"):
        adapter.train_step(batch)


def test_f59_heavy_ball_velocity_is_scaled_by_its_cosine_with_the_next_gradient():
    spec = OptimizerSpec("momentum", 0.1, momentum=0.9)
    for sign in (1.0, -1.0):
        adapter = bowl(size=5, condition=3.0, optimizer=spec)
        for _ in range(3):
            adapter.train_step(None)
        velocity = adapter.snapshot()[1]["w"]
        gap = sign * 2.0 * (adapter.params["w"] - adapter.optimum)
        adapter.params["w"][...] = adapter.optimum + gap
        adapter.after_jump(adapter.read_params())
        g = adapter.curvature * gap
        cosine = velocity @ g / np.linalg.norm(velocity) / np.linalg.norm(g)
        adapter.train_step(None)
        expected = 0.9 * max(0.0, cosine) * velocity + g
        np.testing.assert_allclose(adapter.snapshot()[1]["w"], expected, rtol=1e-12)
        assert (cosine > 0) == (sign > 0)


def test_f59_adam_moments_stay_as_they_are():
    adapter = bowl(optimizer=OptimizerSpec("adam", 0.1))
    adapter.train_step(None)
    before = adapter.snapshot()
    adapter.after_jump(adapter.read_params())
    assert bits(adapter.snapshot()) == bits(before)


@pytest.mark.parametrize(("name", "memory"), [("sgd", 1.0), ("momentum", 5.0), ("adam", 10.0)])
def test_f9_momentum_memory(name, memory):
    assert bowl(optimizer=OptimizerSpec(name, 0.1, momentum=0.8)).momentum_memory == pytest.approx(memory)


def test_f9_moments_against_numpy():
    adapter, batches, _ = clouds(optimizer=OptimizerSpec("adam", 0.01))
    batch = next(batches)
    g = adapter.model.gradient(adapter.params, batch)
    flat = np.concatenate([v.reshape(-1) for v in g.values()])
    adapter.train_step(batch)
    found = adapter.moments()
    assert found["m_std"] == pytest.approx((0.1 * flat).std())
    assert found["m_mean"] == pytest.approx((0.1 * flat).mean(), abs=1e-15)
    assert found["v_mean"] == pytest.approx((0.001 * flat**2).mean())
    assert found["v_std"] == pytest.approx((0.001 * flat**2).std())


def test_a_model_without_parameters_is_an_error():
    with pytest.raises(ModelError, match="no parameters"):
        ReferenceAdapter(SoftmaxRegression(), {}, OptimizerSpec())


def test_an_unknown_optimizer_is_an_error():
    with pytest.raises(ModelError, match="lion"):
        bowl(optimizer=OptimizerSpec("lion", 0.1))


def problem(model):
    return Problem("p", model, {}, {"w": np.zeros(2, np.float32)}, OptimizerSpec(), lambda: iter(()), (), ())


def test_the_framework_builds_what_it_knows_and_names_what_it_does_not():
    assert FRAMEWORK.owns(SoftmaxRegression()) and not FRAMEWORK.owns(object())
    assert isinstance(FRAMEWORK.build(problem("softmax"), "cpu").adapter, ReferenceAdapter)
    with pytest.raises(TaskError, match="no model 'mlp'"):
        FRAMEWORK.build(problem("mlp"), "cpu")
    with pytest.raises(TaskError, match="CPU only"):
        FRAMEWORK.build(problem("softmax"), "cuda")
    assert FRAMEWORK.devices() == ("cpu",)
    assert FRAMEWORK.versions() == {"numpy": np.__version__}
