"""The overhead benchmark compares like with like; its times are not tested."""

import importlib.util
from itertools import islice
from pathlib import Path

import pytest
import torch

from hybridcore.tasks.digits_mlp import DigitsMlp

FILE = Path(__file__).parents[3] / "benchmarks" / "overhead.py"


@pytest.fixture(scope="module")
def overhead():
    spec = importlib.util.spec_from_file_location("overhead", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_arms_train_alike_and_no_jump_is_applied(overhead):
    problem = DigitsMlp(DigitsMlp.Config()).problem(seed=0)
    plain = overhead.torch_loop(problem, "cpu")
    hybrid, engine = overhead.engine_arm(problem, "torch", "cpu")
    for batch in islice(problem.batches(), 150):
        tensors = tuple(map(torch.as_tensor, batch))
        plain.step(tensors)
        hybrid(tensors)
    assert engine.counts.jumps == 0
    assert engine.counts.real_steps == 150
    weights = plain.weights()
    for name, two in engine.adapter.model.named_parameters():
        assert torch.equal(torch.as_tensor(weights[name]), two)


def test_a_measurement_counts_its_steps(overhead):
    result = overhead.measure("digits-mlp", rounds=1, device="cpu")
    assert result.steps == 2 * overhead.TURN_STEPS["digits-mlp"]
    assert result.low == result.ratio == result.high > 0
