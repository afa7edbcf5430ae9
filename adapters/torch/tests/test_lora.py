"""Low-rank fine-tuning: what is trained, what is not, and that it starts from the base."""

import numpy as np
import pytest
import torch

from hybridcore.tasks.lora_gpt import LoraGpt
from hybridcore_torch.framework import FRAMEWORK
from hybridcore_torch.models import build_model
from hybridcore_torch.models.lora import LoraLinear

CONFIG = LoraGpt.Config(
    depth=1, width=16, heads=2, rank=2, max_bytes=500_000, pretrain_steps=10, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def problem():
    return LoraGpt(CONFIG).problem(seed=0)


def test_the_correction_is_its_formula():
    layer = LoraLinear(torch.nn.Linear(3, 5), rank=2, alpha=6.0).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    weight, bias, a, b = (p.detach().numpy() for p in (layer.weight, layer.bias, layer.lora_a, layer.lora_b))
    expected = inputs.numpy() @ (weight + 3.0 * (b @ a)).T + bias
    assert layer(inputs).detach().numpy() == pytest.approx(expected)


def test_the_layout_holds_only_what_is_trained(problem):
    run = FRAMEWORK.build(problem, "cpu")
    names = set(run.adapter.layout.names)
    assert names == {name for name in problem.weights if name.endswith(("lora_a", "lora_b"))}
    # qkv, out, up, down: rank * (in + out) each
    assert run.adapter.layout.total == 2 * (16 + 48 + 16 + 16 + 16 + 64 + 64 + 16)
    held = sum(p.numel() for group in run.adapter.optimizer.param_groups for p in group["params"])
    assert held == run.adapter.layout.total


def test_training_leaves_the_base_alone_and_lowers_the_loss(problem):
    run = FRAMEWORK.build(problem, "cpu")
    before = run.evaluate()["loss"]
    for _ in range(40):
        run.adapter.train_step(next(run.batches))
    assert run.evaluate()["loss"] < before - 0.01
    for name, parameter in run.adapter.model.named_parameters():
        trained = name.endswith(("lora_a", "lora_b"))
        same = np.array_equal(parameter.detach().numpy(), problem.weights[name])
        assert same != trained, name


def test_it_starts_from_the_base_itself(problem):
    from hybridcore.protocols import Problem

    base = {n: w for n, w in problem.weights.items() if not n.endswith(("lora_a", "lora_b"))}
    plain = Problem(
        "base", "transformer", CONFIG.shape, base, problem.optimizer, problem.batches, (), problem.validation
    )
    losses = [
        built.evaluate(built.model, problem.validation)["loss"]
        for built in (build_model(problem), build_model(plain))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
