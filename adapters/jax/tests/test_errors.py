"""Mistakes are typed errors that say what was got, expected, and how to mend it; nothing changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax_lab import data, flat, loss_fn, mlp

from hybridcore.errors import AdapterError, BatchError, DeltaError, ModelError, ProbeError, SnapshotError
from hybridcore_jax import JaxAdapter, LinenModel
from hybridcore_jax.interfaces import parts_of


def make(params=None, optimizer=None, loss=loss_fn, **options):
    options = {"learning_rate": 0.1, **options}
    return JaxAdapter(mlp() if params is None else params, optimizer or optax.sgd(0.1), loss, **options)


def explains(caught):
    error = caught.value
    assert all(part is not None for part in (error.where, error.got, error.expected, error.fix)), error
    return str(error)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "no parameters"),
        ({"w": "three"}, "no array"),
        ({"w": jnp.arange(3)}, "int32"),
        ({"w": np.ones(3)}, "jax_enable_x64"),
        ({"w": jnp.ones(3, jnp.complex64)}, "complex64"),
    ],
    ids=["empty", "no array", "integers", "double", "complex"],
)
def test_parameters_that_cannot_be_trained(params, words):
    with pytest.raises(ModelError) as caught:
        make(params)
    assert words in str(caught.value)
    assert caught.value.fix


def test_arguments_that_cannot_work():
    step = jax.jit(lambda state, batch: (state, 0.0))
    for options, words in (
        ({"trainable": lambda name: False}, "trainable"),
        ({"accumulate": 0}, "accumulate"),
        ({"loss": lambda params, batch, *, state: (loss_fn(params, batch), state)}, "state="),
        ({"loss": lambda params, batch, *, key: loss_fn(params, batch)}, "jax.random.key"),
        ({"learning_rate": None}, "inject_hyperparams"),
        ({"params": [1, 2], "train_step": step}, "params, opt_state"),
    ):
        with pytest.raises(ModelError) as caught:
            make(**options)
        assert words in explains(caught)
    with pytest.raises(ModelError, match="nothing that trains"):
        JaxAdapter(mlp(), None, loss_fn)
    with pytest.raises(ModelError, match="LinenModel"):
        parts_of(linen.Dense(3))
    with pytest.raises(ModelError, match="collection 'params'"):
        LinenModel(linen.Dense(3), {"batch_stats": {}})


def half(params):
    return jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda state, loss: state, "returned the wrong thing"),
        (lambda state, loss: (state, {"accuracy": loss}), "returned the wrong thing"),
        (lambda state, loss: (state, jnp.ones(3)), "shape (3,)"),
        (lambda state, loss: ((state[0],), loss), "changed the structure"),
        (lambda state, loss: ((half(state[0]), state[1]), loss), "bfloat16"),
        (lambda state, loss: ((jax.tree.map(lambda p: p[:1], state[0]), state[1]), loss), "0.bias"),
    ],
    ids=["no loss", "no loss in the mapping", "unreduced", "structure", "dtype", "shape"],
)
@pytest.mark.parametrize("donate", [False, True])
def test_a_train_step_that_returns_the_wrong_thing(result, words, donate):
    def step(state, batch):
        moved = (jax.tree.map(lambda p: p + 1.0, state[0]), state[1])
        return result(moved, loss_fn(state[0], batch).mean())

    compiled = jax.jit(step, donate_argnums=(0,) if donate else ())
    params = mlp()
    adapter = make((params, optax.sgd(0.1).init(params)), train_step=compiled)
    before = flat(adapter.params)
    with pytest.raises(ModelError) as caught:
        adapter.train_step(data()[0])
    assert words in explains(caught)
    assert np.array_equal(flat(adapter.params), before)


def test_a_loss_function_that_changes_the_state():
    def loses(params, batch, *, state):
        return loss_fn(params, batch), {"other": state["mean"]}

    def forgets(params, batch, *, state):
        return loss_fn(params, batch)

    for loss, words in ((loses, "changed its structure"), (forgets, "must return it too")):
        adapter = make(loss=loss, state={"mean": jnp.zeros(2)})
        with pytest.raises(ModelError) as caught:
            adapter.train_step(data()[0])
        assert words in explains(caught)


def test_a_tree_that_has_changed():
    adapter = make()
    for changed, words in (
        (mlp()[:2], "structure"),
        ([{**layer, "bias": layer["bias"].astype(jnp.bfloat16)} for layer in mlp()], "bfloat16"),
        (mlp((6, 8, 9, 3)), "1."),
        (jax.tree.map(np.asarray, mlp()), "jax.device_put"),
        (jax.tree.map(lambda p: 1.0, mlp()), "float"),
    ):
        with pytest.raises(ModelError) as caught:
            adapter.adopt(changed, adapter.opt_state, None)
        assert words in explains(caught)


def test_losses_that_are_none():
    adapter = make(loss=lambda params, batch: batch[1])
    with pytest.raises(BatchError, match="no losses"):
        adapter.train_step(data()[0])
    mean = make(loss=lambda params, batch: loss_fn(params, batch).mean())
    assert np.isfinite(mean.train_step(data()[0]).loss)
    with pytest.raises(ProbeError, match="per-example"):
        mean.probe_loss(data()[0])
    with pytest.raises(ProbeError, match="no examples"):
        make().probe_loss(tuple(x[:0] for x in data()[0]))
    with pytest.raises(BatchError, match="micro-batches"):
        make(loss=lambda params, batch: params[0]["w"].sum(1), accumulate=2).train_step(())


def test_buckets_and_snapshots_of_another_kind():
    adapter = make()
    for wrong in (("one",), (np.full(adapter.layout.total, "x"),)):
        with pytest.raises((DeltaError, AttributeError)):
            adapter.apply_delta(wrong)
    with pytest.raises(SnapshotError) as caught:
        adapter.restore({"params": 1})
    assert "snapshot()" in explains(caught)
    with pytest.raises(SnapshotError, match="another optimizer"):
        adapter.restore(make(optimizer=optax.adam(0.1)).snapshot())
    assert issubclass(SnapshotError, AdapterError)
