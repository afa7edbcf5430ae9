"""F58: float64 in TensorFlow: every variable of model, statistics and optimizer, and the learning rate."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.tasks.digits_mlp import DigitsMlp
from hybridcore.tasks.lora_gpt import LoraGpt
from hybridcore.tasks.mnist_cnn import MnistCnn
from hybridcore.tasks.precision import in_float64
from hybridcore.tasks.stdlib_gpt import StdlibGpt
from hybridcore_tensorflow.framework import FRAMEWORK
from hybridcore_tensorflow.models import build_model
from hybridcore_tensorflow.models.transformer import gelu
from hybridcore_tensorflow.variables import components

SMALL = {
    "digits-mlp": {"width": 8, "optimizer": "adam", "learning_rate": 0.003},
    "mnist-cnn": {"filters": 2, "learning_rate": 0.003},
    "lora-gpt": {"depth": 1, "width": 16, "heads": 2, "max_bytes": 500_000, "pretrain_steps": 10},
    "stdlib-gpt": {"depth": 1, "width": 8, "heads": 2, "context": 6, "batch_size": 3, "max_bytes": 500_000},
}


@pytest.mark.parametrize("cls", [DigitsMlp, MnistCnn, StdlibGpt, LoraGpt], ids=lambda cls: cls.name)
def test_f58_a_run_is_float64_throughout(cls):
    problem = in_float64(cls(cls.Config(**SMALL[cls.name])).problem(0))
    run = FRAMEWORK.build(problem, "cpu")
    adapter = run.adapter
    assert adapter.layout.bucket_dtype == "float64"
    assert keras.config.floatx() == "float32"
    snapshot = adapter.snapshot()
    kinds = {v.dtype.name for v in snapshot.variables if v.dtype.is_floating}
    narrow = [n for n, v in zip(snapshot.names, snapshot.variables, strict=True) if v.dtype == tf.float32]
    assert narrow == [] and kinds == {"float64"}
    assert adapter.learning_rate == problem.optimizer.learning_rate
    named = adapter.layout.unpack(adapter.read_params(), np)
    assert set(named) == {name for name in problem.weights if cls is not LoraGpt or "lora" in name}
    for name, array in named.items():
        np.testing.assert_array_equal(array, problem.weights[name])


def test_f58_float32_stays_float32():
    built = build_model(DigitsMlp(DigitsMlp.Config(width=8)).problem(0))
    assert {components(v)[0].dtype.name for v in built.model.trainable_variables} == {"float32"}


def test_f58_gelu_keeps_float64():
    """`tf.nn.gelu` is off by 5e-9."""
    x = np.linspace(-4.0, 4.0, 101)
    want = [0.5 * t * math.erfc(-t * math.sqrt(0.5)) for t in x]
    np.testing.assert_allclose(gelu(tf.constant(x)).numpy(), want, rtol=1e-14, atol=1e-16)
