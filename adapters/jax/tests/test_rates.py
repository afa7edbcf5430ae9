"""Scaled learning rates (F40), adaptive clipping (F69) and overflows (F62), against plain loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_lab import data, loss_fn, mlp

from hybridcore.config import HybridConfig
from hybridcore.configfile import config_from_dict
from hybridcore.injection import parse_faults
from hybridcore.records import read_run
from hybridcore.runner import run_task
from hybridcore_jax import JaxAdapter, hybridize, rescale_velocity
from hybridcore_jax.adaptive_clipping import clip_units
from hybridcore_jax.own_step import part_of_the_way
from hybridcore_jax.parameters import plan_params

SCHEDULE = optax.cosine_decay_schedule(0.05, 20)


def quartered(count):
    """The rate of `SCHEDULE`, a quarter of it from the fourth update on."""
    return SCHEDULE(count) * jnp.where(count >= 3, 0.25, 1.0)


@pytest.mark.parametrize(
    ("rule", "injected"),
    [
        (lambda rate: optax.sgd(rate, momentum=0.9), False),
        (optax.adamw, False),
        (lambda rate: optax.inject_hyperparams(optax.adam)(learning_rate=rate), True),
    ],
)
def test_f40_a_scaled_schedule_trains_like_the_schedule_times_the_factor(rule, injected):
    one, two = (
        JaxAdapter(mlp(), rule(rate), loss_fn, learning_rate=None if injected else rate)
        for rate in (SCHEDULE, quartered)
    )
    for index in range(8):
        if index == 3:
            one.scale_learning_rate(0.25)
        batch = data()[index % 4]
        assert one.train_step(batch).loss == pytest.approx(two.train_step(batch).loss, rel=1e-6)
        assert one.learning_rate == pytest.approx(two.learning_rate, rel=1e-6)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def own_loop(optimizer, donate=False):
    def step(params, opt_state, batch):
        loss, gradient = jax.value_and_grad(lambda p: loss_fn(p, batch).mean())(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return jax.jit(step, donate_argnums=(0, 1) if donate else ())


@pytest.mark.parametrize("rule", [rescale_velocity, lambda optimizer: optimizer])
@pytest.mark.parametrize("donate", [False, True])
def test_f40_the_rate_of_a_loop_of_ones_own_is_scaled(rule, donate):
    """By the optimizer's own state, or by taking a part of the way; both are plain SGD at another rate."""
    optimizer = rule(optax.sgd(0.1))
    hybrid = hybridize(mlp(), optimizer, HybridConfig(), loss_fn=loss_fn, learning_rate=0.1, probe=data()[3:])
    step, first, twin = own_loop(optimizer, donate), own_loop(optax.sgd(0.1)), own_loop(optax.sgd(0.02))
    params, opt_state, loss = mlp(), optimizer.init(mlp()), None
    want, state = mlp(), optax.sgd(0.02).init(mlp())
    for index, batch in enumerate(data()[:3]):
        params, opt_state, loss = step(params, opt_state, batch)
        params, opt_state = hybrid.advance(params, opt_state, loss)
        want, state, _ = (first if index == 0 else twin)(want, state, batch)
        if index == 0:  # as the engine does inside `advance`
            hybrid.adapter.scale_learning_rate(0.2)
            hybrid.adapter.hold()
            opt_state = hybrid.adapter.opt_state
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_part_of_the_way_in_closed_form():
    before, after = {"w": jnp.asarray([1.0, 2.0])}, {"w": jnp.asarray([3.0, -2.0])}
    assert part_of_the_way(before, after, 0.25)["w"].tolist() == [1.5, 1.0]


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_f69_units_are_clipped_to_the_stated_norm(shape, last):
    rng = np.random.default_rng(1)
    w, g = rng.standard_normal(shape), rng.standard_normal(shape)
    g *= 10.0 ** np.arange(-3, 3).reshape(-1, *[1] * (len(shape) - 1))
    rows = zip(w, g, strict=True) if len(shape) > 1 else [(w, g)]
    want = np.reshape(
        [b * min(1.0, 0.1 * max(np.linalg.norm(a), 1e-3) / np.linalg.norm(b)) for a, b in rows], shape
    )
    name = "kernel" if last else "weight"
    weights, gradient = ({name: jnp.asarray(np.moveaxis(x, 0, -1) if last else x)} for x in (w, g))
    got = clip_units(gradient, weights, plan_params(weights, None, {}), 0.1)[name]
    np.testing.assert_allclose(np.moveaxis(got, -1, 0) if last else got, want, rtol=1e-5)


def test_f69_the_update_is_that_of_the_clipped_gradient_and_is_compiled_once():
    adapter, batch = JaxAdapter(mlp(), optax.sgd(0.1), loss_fn, learning_rate=0.1), data()[0]
    params = adapter.params
    gradient = jax.grad(lambda p: loss_fn(p, batch).mean())(params)
    clipped = clip_units(gradient, params, plan_params(params, None, {}), 0.02)
    adapter.clip_adaptively(0.02)
    adapter.train_step(batch)
    for a, p, g in zip(*map(jax.tree.leaves, (adapter.params, params, clipped)), strict=True):
        np.testing.assert_allclose(a, p - 0.1 * g, rtol=1e-5, atol=1e-7)
    compiled = adapter._runner._compiled._cache_size()
    for ratio in (0.01, 0.5):
        adapter.clip_adaptively(ratio)
        adapter.train_step(batch)
    assert adapter._runner._compiled._cache_size() == compiled
    adapter.clip_adaptively(0.01)
    assert adapter.train_step((batch[0] * jnp.inf, batch[1])).skipped


def test_f62_an_overflow_that_ones_own_step_reports_is_no_trouble_and_lowers_its_scale():
    """A loss scale at the end of float32 overflows; it comes down by 2^16 at each overflow."""

    def step(state, batch):
        def scaled(params):
            loss = loss_fn(params, batch).mean()
            return loss * state["scale"], loss

        (_, loss), gradient = jax.value_and_grad(scaled, has_aux=True)(state["params"])
        good = jnp.isfinite(optax.tree.norm(gradient))
        params = jax.tree.map(
            lambda p, g: jnp.where(good, p - 0.1 * g / state["scale"], p), state["params"], gradient
        )
        scale = jnp.where(good, state["scale"], state["scale"] / 2.0**16)
        new = {"params": params, "opt_state": (), "scale": scale}
        return new, {"loss": loss, "overflow": ~good}

    start = {"params": mlp(), "opt_state": (), "scale": jnp.asarray(2.0**127)}
    adapter = JaxAdapter(start, None, loss_fn, train_step=jax.jit(step), learning_rate=0.1)
    results = [adapter.train_step(data()[0]) for _ in range(8)]
    assert results[0].overflow and not results[-1].overflow
    assert [r.skipped for r in results] == [r.overflow for r in results]
    assert adapter.real_steps == sum(not r.skipped for r in results)
    assert not adapter.train_step((data()[0][0] * jnp.nan, data()[0][1])).overflow


def test_f40_recovery_rolls_back_and_retries_at_a_smaller_rate(tmp_path):
    """One update is ten thousand times too long; the run goes back, takes half its rate, and ends well."""
    config = config_from_dict(
        {
            "run": {"steps": 120, "framework": "jax", "evaluate_every": 40},
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
