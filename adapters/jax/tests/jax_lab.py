"""Small problems that the tests of the JAX adapter share."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybridcore.testing import AdapterFixture
from hybridcore_jax import JaxAdapter
from hybridcore_jax.trees import named_leaves

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def data(shape=(6,), n=16, count=4, dtype=np.float32):
    rng = np.random.default_rng(1)
    return [
        (jnp.asarray(rng.standard_normal((n, *shape)), dtype), jnp.asarray(rng.integers(0, 3, n)))
        for _ in range(count)
    ]


def mlp(sizes=(6, 8, 8, 3), dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [
        {
            "w": jnp.asarray(rng.standard_normal((a, b)) / np.sqrt(a), dtype),
            "bias": jnp.zeros(b, dtype),
        }
        for a, b in itertools.pairwise(sizes)
    ]


def logits(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["bias"])
    return x @ params[-1]["w"] + params[-1]["bias"]


def loss_fn(params, batch):
    return cross_entropy(
        logits(params, batch[0]).astype(jnp.promote_types(batch[0].dtype, jnp.float32)), batch[1]
    )


@functools.cache
def other():
    params = {"w": jnp.ones((6, 3))}
    return JaxAdapter(
        params, optax.sgd(0.1), lambda p, b: cross_entropy(b[0] @ p["w"], b[1]), learning_rate=0.1
    )


def fixture(model, optimizer, batches, loss=loss_fn, random_steps=False, **options):
    """A contract fixture; the weights are read from the train state by names of their own."""
    adapter = JaxAdapter(model, optimizer, loss, **options)
    inputs, labels = batches[0]

    def weights():
        trained = options.get("trainable") or (lambda name: True)
        return {n: np.asarray(v, np.float64).copy() for n, v in named_leaves(adapter.params) if trained(n)}

    return AdapterFixture(
        adapter=adapter,
        batches=batches,
        probe=batches[3],
        nan_batch=(jnp.full_like(inputs, jnp.nan), labels),
        bad_batch=(inputs[..., :2], labels),
        n_probe=labels.shape[0],
        random_steps=random_steps,
        weights=weights,
        other=other(),
    )


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
