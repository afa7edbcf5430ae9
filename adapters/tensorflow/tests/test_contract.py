"""The adapter contract on the kinds of models and optimizers that people train."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.layout import ParamGroup
from hybridcore.testing import AdapterContract, AdapterFixture
from hybridcore_tensorflow import TensorFlowAdapter
from hybridcore_tensorflow.variables import components

layers = keras.layers


def cross_entropy(model, batch, training=False):
    logits = tf.cast(model(batch[0], training=training), tf.float32)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], logits)


def mlp():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="tanh"), layers.Dense(8, activation="tanh"), layers.Dense(3)]
    )


def data(shape=(6,), n=16, count=4, dtype="float32"):
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((n, *shape)).astype(dtype), rng.integers(0, 3, n)) for _ in range(count)]


def fixture(model, optimizer, batches=None, loss_fn=cross_entropy, random_steps=False, other=True, **options):
    batches = batches or data()
    adapter = TensorFlowAdapter(model, optimizer, loss_fn, **options)

    def weights():
        return {
            name: components(v)[0].numpy().astype(np.float64)
            for name, v in zip(adapter.layout.names, adapter._found.trained, strict=True)
        }

    inputs, labels = batches[0]
    floating = np.issubdtype(inputs.dtype, np.floating)
    another = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    return AdapterFixture(
        adapter=adapter,
        batches=batches,
        probe=batches[3],
        nan_batch=(np.full_like(inputs, np.nan), labels) if floating else None,
        bad_batch=(inputs[..., :2] if floating else inputs.astype(np.float32)[None, None], labels),
        n_probe=labels.shape[0],
        random_steps=random_steps,
        weights=weights,
        other=TensorFlowAdapter(another, keras.optimizers.SGD(0.1), loss_fn) if other else None,
    )


class TestSgd(AdapterContract):
    def make(self):
        return fixture(mlp(), keras.optimizers.SGD(0.1))


class TestMomentum(AdapterContract):
    def make(self):
        return fixture(mlp(), keras.optimizers.SGD(0.05, momentum=0.9))
