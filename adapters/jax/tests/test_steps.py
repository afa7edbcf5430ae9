"""The compiled step: accumulation, clipping, dropout keys, schedules, double precision."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_lab import data, flat, loss_fn, mlp

from hybridcore_jax import JaxAdapter


def make(loss=loss_fn, optimizer=None, **options):
    return JaxAdapter(mlp(), optimizer or optax.sgd(0.1), loss, learning_rate=0.1, **options)


@pytest.mark.parametrize("parts", [2, 3, 5, 99])
def test_f61_accumulation_equals_the_whole_batch(parts):
    whole, cut = make(), make(accumulate=parts)
    for batch in data():
        one, many = whole.train_step(batch), cut.train_step(batch)
        assert many.loss == pytest.approx(one.loss, rel=1e-5)
        assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
        assert many.n_examples == 16
        size = -(-16 // min(parts, 16))
        assert many.backward_passes == -(-16 // size)
    np.testing.assert_allclose(flat(cut.params), flat(whole.params), rtol=1e-5, atol=1e-6)


def test_the_gradient_norm_is_clipped_and_reported():
    free, clipped = make(), make(max_grad_norm=0.05)
    batch = data()[0]
    start = flat(free.params)
    norm = free.train_step(batch).grad_norm
    assert norm > 0.05
    assert clipped.train_step(batch).grad_norm == pytest.approx(0.05)
    np.testing.assert_allclose(
        flat(clipped.params) - start, (flat(free.params) - start) * 0.05 / norm, rtol=1e-3, atol=1e-7
    )


def noisy(params, batch, *, key, training):
    kept = jax.random.bernoulli(key, 0.5, batch[0].shape) if training else 1.0
    return loss_fn(params, (batch[0] * kept, batch[1]))


def test_every_step_draws_a_key_of_its_own_and_a_skipped_one_none():
    adapter, (batch, *_) = make(noisy, optax.sgd(0.0), key=jax.random.key(5)), data()
    key, want = jax.random.key(5), []
    for _ in range(3):
        key, used = jax.random.split(key)
        want.append(float(noisy(adapter.params, batch, key=used, training=True).mean()))
    found = [adapter.train_step(batch).loss]
    assert adapter.train_step((batch[0] * jnp.nan, batch[1])).skipped
    found += [adapter.train_step(batch).loss for _ in range(2)]
    assert found == pytest.approx(want, rel=1e-5)
    assert len(set(found)) == 3


def test_what_was_passed_in_stays_valid_though_steps_donate():
    params = mlp()
    adapter = JaxAdapter(params, optax.adam(0.1), loss_fn, learning_rate=0.1, donate=True)
    first = adapter.params
    adapter.train_step(data()[0])
    assert all(x.is_deleted() for x in jax.tree.leaves(first))
    assert np.array_equal(flat(params), flat(mlp()))


def test_snapshots_share_memory_only_where_nothing_can_free_it():
    for donate in (False, True):
        adapter = make(donate=donate)
        point = adapter.snapshot()
        shared = jax.tree.leaves(point.state)[0] is jax.tree.leaves(adapter.train_state)[0]
        assert shared is not donate
        assert adapter.snapshot_nbytes() == sum(x.nbytes for x in jax.tree.leaves(point.state))


DOUBLE = """
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np, optax
from hybridcore.plugins import load_framework, load_registry
from hybridcore.tasks.precision import in_float64
from hybridcore_jax import JaxAdapter
rng = np.random.default_rng(0)
x, y, w = rng.standard_normal((20, 3)), rng.standard_normal(20), rng.standard_normal(3)
loss_fn = lambda params, batch: (batch[0] @ params["w"] - batch[1]) ** 2
adapter = JaxAdapter({"w": w}, optax.sgd(0.1, momentum=0.9), loss_fn, learning_rate=0.1)
m = 0.0
for _ in range(50):
    r = x @ w - y
    m = 0.9 * m + 2 * x.T @ r / 20
    assert abs(adapter.train_step((x, y)).loss - np.mean(r * r)) < 1e-13
    w = w - 0.1 * m
assert adapter.layout.params[0].dtype == "float64" and adapter.read_params()[0].dtype == np.float64
assert abs(np.asarray(adapter.params["w"]) - w).max() < 1e-13
for name in ("quadratic", "logistic"):
    cls = load_registry().get("task", name)
    problems = [in_float64(cls(cls.Config(optimizer="adam")).problem(1)) for _ in range(2)]
    runs = [load_framework(f).build(p, "cpu") for f, p in zip(("numpy", "jax"), problems)]
    for _ in range(40):
        one, two = (run.adapter.train_step(next(run.batches)) for run in runs)
        assert abs(one.loss - two.loss) <= 1e-12 * abs(one.loss), (name, one, two)
"""


def test_double_precision_equals_numpy_to_its_last_digits():
    """Heavy ball by its formula, and two tasks on the NumPy adapter; in a process of its own."""
    subprocess.run([sys.executable, "-c", DOUBLE], check=True, timeout=300)
