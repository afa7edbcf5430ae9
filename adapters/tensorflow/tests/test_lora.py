"""Low-rank fine-tuning: what is trained, what is not, and that it starts from the base."""

import attrs
import numpy as np
import pytest

from hybridcore.tasks.lora_gpt import LoraGpt
from hybridcore_tensorflow.framework import FRAMEWORK
from hybridcore_tensorflow.models import build_model
from hybridcore_tensorflow.models.built import Dense
from hybridcore_tensorflow.models.lora import LoraDense
from hybridcore_tensorflow.variables import weights_of

CONFIG = LoraGpt.Config(
    depth=1, width=16, heads=2, rank=2, max_bytes=500_000, pretrain_steps=10, learning_rate=1e-2
)


@pytest.fixture
def problem(untrained_base):
    return LoraGpt(CONFIG).problem(seed=0)


def test_the_correction_is_its_formula():
    layer = LoraDense(Dense(3, 5, trainable=False), rank=2, alpha=6.0)
    rng = np.random.default_rng(0)
    for variable in (layer.weight, layer.bias, layer.lora_a, layer.lora_b):
        variable.assign(rng.standard_normal(variable.shape))
    inputs = rng.standard_normal((7, 2, 3)).astype(np.float32)
    weight, bias, a, b = (
        v.numpy().astype(float) for v in (layer.weight, layer.bias, layer.lora_a, layer.lora_b)
    )
    np.testing.assert_allclose(
        layer(inputs), inputs @ (weight + 3.0 * (b @ a)).T + bias, rtol=1e-4, atol=1e-4
    )


def test_the_layout_holds_only_what_is_trained(problem):
    run = FRAMEWORK.build(problem, "cpu")
    names = set(run.adapter.layout.names)
    assert names == {name for name in problem.weights if name.endswith(("lora_a", "lora_b"))}
    # qkv, out, up, down: rank * (in + out) each
    assert run.adapter.layout.total == 2 * (16 + 48 + 16 + 16 + 16 + 64 + 64 + 16)
    moments = [v for v in run.adapter.optimizer.variables if len(v.shape) > 0]
    assert sum(int(np.prod(v.shape)) for v in moments) == 2 * run.adapter.layout.total


def test_training_leaves_the_base_alone_and_lowers_the_loss(problem):
    run = FRAMEWORK.build(problem, "cpu")
    before = run.evaluate()["loss"]
    for _ in range(40):
        run.adapter.train_step(next(run.batches))
    assert run.evaluate()["loss"] < before - 0.01
    for name, variable in weights_of(run.adapter.model).items():
        trained = name.endswith(("lora_a", "lora_b"))
        assert np.array_equal(variable.numpy(), problem.weights[name]) != trained, name


def test_it_starts_from_the_base_itself(problem):
    base = {n: w for n, w in problem.weights.items() if not n.endswith(("lora_a", "lora_b"))}
    plain = attrs.evolve(problem, model="transformer", shape=CONFIG.shape, weights=base)
    losses = [build_model(p).evaluate(problem.validation)["loss"] for p in (problem, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
