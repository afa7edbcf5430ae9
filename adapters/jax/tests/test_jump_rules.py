"""What a jump and a rollback do to the optimizer, against formulas (F59)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_lab import data, flat, loss_fn, mlp

from hybridcore.protocols import StepResult
from hybridcore_jax import JaxAdapter
from hybridcore_jax.jump_rules import JumpState, after_jump, rescale_velocity
from hybridcore_jax.trees import find_nodes, is_a


def make(optimizer, **options):
    return JaxAdapter(mlp(), optimizer, loss_fn, learning_rate=0.05, **options)


def velocity(adapter):
    return flat(next(find_nodes(adapter.opt_state, is_a(optax.TraceState))).trace)


def gradient(adapter, batch):
    return flat(jax.grad(lambda p: loss_fn(p, batch).mean())(adapter.params))


def jump(adapter, size=0.01):
    deltas = tuple(size * jnp.ones_like(b) for b in adapter.read_params())
    adapter.apply_delta(deltas)
    adapter.after_jump(deltas)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_velocity_is_scaled_by_the_cosine_with_the_next_gradient(sign):
    """v' = momentum * max(0, cos(v, g)) * v + g, computed in float64; once only."""
    adapter, batches = make(optax.sgd(0.05, momentum=0.9)), data()
    for _ in range(3):
        adapter.train_step(batches[3])
    state = adapter.opt_state
    turned = jax.tree.map(lambda x: sign * x if x.dtype == jnp.float32 else x, state)
    adapter.adopt(adapter.params, turned, StepResult(1.0))
    jump(adapter)
    old, fresh = velocity(adapter), gradient(adapter, batches[3])
    cosine = old @ fresh / (np.linalg.norm(old) * np.linalg.norm(fresh))
    assert (cosine > 0) == (sign > 0)
    adapter.train_step(batches[3])
    np.testing.assert_allclose(velocity(adapter), 0.9 * max(0.0, cosine) * old + fresh, rtol=1e-4, atol=1e-6)
    old, fresh = velocity(adapter), gradient(adapter, batches[1])
    adapter.train_step(batches[1])
    np.testing.assert_allclose(velocity(adapter), 0.9 * old + fresh, rtol=1e-4, atol=1e-6)


def test_a_skipped_step_and_a_rollback_treat_the_waiting_rule_rightly():
    adapter, batches = make(optax.sgd(0.05, momentum=0.9)), data()
    adapter.train_step(batches[0])
    point = adapter.snapshot()
    jump(adapter)
    assert bool(adapter.opt_state.pending)
    adapter.train_step((batches[0][0] * jnp.nan, batches[0][1]))
    assert bool(adapter.opt_state.pending)
    adapter.restore(point)
    assert not bool(adapter.opt_state.pending)


def test_adam_keeps_moments_and_count():
    adapter, batches = make(optax.adam(0.01)), data()
    for batch in batches[:3]:
        adapter.train_step(batch)
    before = jax.tree.map(np.asarray, adapter.opt_state)
    jump(adapter, 0.1)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(adapter.opt_state), strict=True):
        np.testing.assert_array_equal(a, b)
    fresh = gradient(adapter, batches[3])
    old = flat(adapter.opt_state.inner[0].mu)
    adapter.train_step(batches[3])
    np.testing.assert_allclose(
        flat(adapter.opt_state.inner[0].mu), 0.9 * old + 0.1 * fresh, rtol=1e-4, atol=1e-7
    )
    assert int(adapter.opt_state.inner[0].count) == 4


def test_lbfgs_starts_afresh_after_a_jump():
    """The next step equals the first step of a new optimizer at the same weights."""
    optimizer, batches = optax.lbfgs(0.5, memory_size=2, linesearch=None), data()
    adapter = make(optimizer)
    result = adapter.train_step(batches[0])
    assert result.backward_passes == 1
    jump(adapter)
    twin = JaxAdapter(adapter.params, optimizer, loss_fn, learning_rate=0.05)
    adapter.train_step(batches[2])
    twin.train_step(batches[2])
    np.testing.assert_array_equal(flat(adapter.params), flat(twin.params))


def test_a_line_search_counts_its_gradients():
    """F49: a zoom line search evaluates one gradient per trial step."""
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=4)
    adapter = make(optax.lbfgs(memory_size=1, linesearch=search))
    result = adapter.train_step(data()[0])
    info = next(find_nodes(adapter.opt_state, lambda n: hasattr(n, "num_linesearch_steps")))
    assert result.backward_passes == 1 + int(info.num_linesearch_steps) > 1


def test_an_unwrapped_velocity_is_dropped_and_masked_ones_are_kept_apart():
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    plain = optax.sgd(0.1, momentum=0.9)
    _, state = plain.update(params, plain.init(params))
    assert not flat(after_jump(state)).any()
    masked = rescale_velocity(optax.masked(plain, {"a": True, "b": False}))
    _, state = masked.update(params, masked.init(params))
    state = after_jump(state)
    assert isinstance(state, JumpState)
    assert bool(state.pending)
    # The velocity (1, 1, 1) against a gradient (1, 0, 0): cosine 1 / sqrt(3), without the masked b.
    _, new = masked.update({"a": jnp.array([1.0, 0.0, 0.0]), "b": 5.0 * jnp.ones(2)}, state)
    kept = next(find_nodes(new, is_a(optax.TraceState))).trace["a"]
    np.testing.assert_allclose(kept, 0.9 / np.sqrt(3.0) + np.array([1.0, 0.0, 0.0]), rtol=1e-6)


def test_moments_are_means_over_all_weights():
    adapter = make(optax.adam(0.01))
    assert set(adapter.moments().values()) == {0.0}
    adapter.train_step(data()[0])
    mu, nu = flat(adapter.opt_state.inner[0].mu), flat(adapter.opt_state.inner[0].nu)
    want = {"m_mean": mu.mean(), "m_std": mu.std(), "v_mean": nu.mean(), "v_std": nu.std()}
    assert adapter.moments() == pytest.approx(want, rel=1e-12)
