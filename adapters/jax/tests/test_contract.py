"""The adapter contract on the kinds of models, optimizers and steps that people train with."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax_lab import cross_entropy, data, fixture, loss_fn, mlp

from hybridcore.layout import ParamGroup
from hybridcore.testing import AdapterContract
from hybridcore_jax.interfaces.equinox import EquinoxModel
from hybridcore_jax.trees import copy_tree


class Contract(AdapterContract):
    """Compiling takes the time, so a class makes one adapter, two where a test wants two.

    Each test begins anew, without the adapter's help: the adapter and its parts get their first attributes,
    and the train state is a copy of the first one, which no test ever sees.
    """

    def build(self):
        """An `AdapterFixture`."""
        raise NotImplementedError

    def make(self):
        pool = type(self).__dict__.get("pool") or []
        type(self).pool = pool
        self.made = getattr(self, "made", -1) + 1
        if self.made == len(pool):
            made = self.build()
            adapter = made.adapter
            own = [p for p in vars(adapter).values() if type(p).__module__.startswith("hybridcore_jax.")]
            first = [(part, dict(vars(part))) for part in (adapter, *own) if hasattr(part, "__dict__")]
            pool.append((made, first, copy_tree(adapter._state)))
        made, first, state = pool[self.made]
        for part, attributes in first:
            vars(part).clear()
            vars(part).update(attributes)
        made.adapter._state = copy_tree(state)
        return made


class TestMomentumDonatingAccumulating(Contract):
    """Every step deletes the state before it, as on an accelerator; three micro-batches; clipping."""

    def build(self):
        rate = optax.cosine_decay_schedule(0.05, 30)
        return fixture(
            mlp(),
            optax.sgd(rate, momentum=0.9),
            data(),
            learning_rate=rate,
            donate=True,
            accumulate=3,
            max_grad_norm=0.1,
        )


class TestInjectedAdamWMixedDtypesFrozen(Contract):
    """F62: a bfloat16 body, a float32 head, a frozen first bias: two buckets."""

    def build(self):
        params = mlp()
        params[0] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params[0])
        return fixture(
            params,
            optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
            data(),
            trainable=lambda name: name != "0.bias",
        )

    def test_two_buckets_without_the_frozen_one(self):
        made = self.make()
        assert made.adapter.layout.bucket_sizes == (48, 72 + 27)
        assert {p.dtype for p in made.adapter.layout.params} == {"float32", "bfloat16"}
        made.adapter.train_step(made.batches[0])
        assert not made.adapter.params[0]["bias"].any()


class TestFloat64(Contract):
    """F62: buckets, and all that is done with them, have the precision of the weights."""

    @pytest.fixture(autouse=True)
    def double(self):
        with jax.enable_x64(True):
            yield

    def build(self):
        optimizer = optax.sgd(0.05, momentum=0.9)
        return fixture(mlp(dtype=jnp.float64), optimizer, data(dtype=np.float64), learning_rate=0.05)

    def test_buckets_are_float64(self):
        layout = self.make().adapter.layout
        assert (layout.bucket_dtype, layout.nbytes) == ("float64", 8 * layout.total)


def own_step(donate):
    optimizer = optax.adam(1e-2)

    def step(state, batch):
        params, opt_state = state
        loss, gradient = jax.value_and_grad(lambda p: loss_fn(p, batch).mean())(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    params = mlp()
    return jax.jit(step, donate_argnums=(0,) if donate else ()), (params, optimizer.init(params)), optimizer


class TestOwnDonatingTrainStep(Contract):
    def build(self):
        step, state, optimizer = own_step(donate=True)
        return fixture(state, optimizer, data(), train_step=step, learning_rate=1e-2)


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.inner = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.norm(self.inner(x)))))


def by_model(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


class TestNnx(Contract):
    """BatchNorm and dropout; the random streams are part of the module's state."""

    def build(self):
        return fixture(
            Nnx(), optax.sgd(0.05, momentum=0.9), data(), by_model, random_steps=True, learning_rate=0.05
        )

    def test_groups_follow_layers(self):
        groups = {p.name: p.group for p in self.make().adapter.layout.params}
        assert groups["norm.scale"] is groups["norm.bias"] is ParamGroup.NORM
        assert groups["inner.kernel"] is ParamGroup.MATRIX
        assert groups["inner.bias"] is ParamGroup.BIAS


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.relu(linen.BatchNorm(use_running_average=not train, momentum=0.9)(linen.Dense(8)(x)))
        return linen.Dense(3)(linen.Dropout(0.3, deterministic=not train)(x))


class Eqx(eqx.Module):
    inner: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.inner, self.head = eqx.nn.Linear(6, 8, key=one), eqx.nn.Linear(8, 3, key=two)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", momentum=0.9, mode="batch")
        self.drop = eqx.nn.Dropout(0.3)

    def __call__(self, x, state, key):
        x, state = self.norm(self.inner(x), state)
        return self.head(self.drop(jax.nn.relu(x), key=key)), state


def equinox_loss(model, batch, *, state, key):
    keys = jax.random.split(key, batch[0].shape[0])
    found, state = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(
        batch[0], state, keys
    )
    return cross_entropy(found, batch[1]), state


def equinox_fixture():
    model, state = eqx.nn.make_with_state(Eqx)(jax.random.key(0))
    return fixture(
        EquinoxModel(model, state),
        optax.sgd(0.05, momentum=0.9),
        data(),
        equinox_loss,
        random_steps=True,
        learning_rate=0.05,
        key=jax.random.key(1),
    )


class TestEquinox(Contract):
    def build(self):
        return equinox_fixture()
