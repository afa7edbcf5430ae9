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


def test_both_arms_train_alike_and_no_jump_is_applied(overhead, monkeypatch):
    models = []
    original = overhead.build_model
    monkeypatch.setattr(overhead, "build_model", lambda *a: models.append(original(*a)) or models[-1])
    problem = DigitsMlp(DigitsMlp.Config()).problem(seed=0)
    plain = overhead.plain_arm(problem, "cpu")
    hybrid, engine = overhead.engine_arm(problem, "cpu")
    for batch in islice(problem.batches(), 150):
        tensors = tuple(map(torch.as_tensor, batch))
        plain(tensors)
        hybrid(tensors)
    assert engine.counts.jumps == 0
    assert engine.counts.real_steps == 150
    for one, two in zip(models[0].model.parameters(), engine.adapter.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_measurement_counts_its_steps(overhead):
    result = overhead.measure("digits-mlp", rounds=1, device="cpu")
    assert result.steps == 2 * overhead.TURN_STEPS["digits-mlp"]
    assert result.low == result.ratio == result.high > 0
