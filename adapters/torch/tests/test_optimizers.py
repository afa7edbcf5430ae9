"""Optimizers and schedules from neutral words, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from hybridcore.errors import TaskError
from hybridcore.protocols import OptimizerSpec
from hybridcore_torch.adapter import TorchAdapter
from hybridcore_torch.optimizers import build_optimizer, build_schedule, schedule_factor


def one_weight(value=1.0):
    return torch.nn.Parameter(torch.tensor([value]))


@pytest.mark.parametrize(
    ("name", "decay", "after"),
    [
        # Gradient 2 at weight 1, twice, rate 0.1; L2 decay 0.5 adds 0.5 w to the gradient.
        ("sgd", 0.0, 1.0 - 0.2 - 0.2),
        ("sgd", 0.5, (1.0 - 0.25) - 0.1 * (2.0 + 0.375)),
        ("momentum", 0.0, 1.0 - 0.2 - 0.1 * (0.9 * 2.0 + 2.0)),
        ("adam", 0.0, 1.0 - 0.1 - 0.1),
        ("adamw", 0.5, (1.0 * 0.95 - 0.1) * 0.95 - 0.1),
    ],
)
def test_two_steps_match_the_formula(name, decay, after):
    weight = one_weight()
    spec = OptimizerSpec(name=name, learning_rate=0.1, momentum=0.9, weight_decay=decay)
    optimizer = build_optimizer([weight], spec)
    assert optimizer.param_groups[0]["fused"] is True
    for _ in range(2):
        weight.grad = torch.tensor([2.0])
        optimizer.step()
    assert weight.item() == pytest.approx(after, rel=1e-5)


def test_lbfgs_solves_a_quadratic_and_counts_its_evaluations():
    """On ten dimensions of condition 100, a few steps of ten iterations are exact to float32."""
    scales = torch.logspace(0, 2, 10)
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.ones(10))
    optimizer = build_optimizer(model.parameters(), OptimizerSpec(name="lbfgs", learning_rate=1.0))
    adapter = TorchAdapter(model, optimizer, lambda model, _: (scales * model.weight.square()).sum()[None])
    results = [adapter.train_step(None) for _ in range(4)]
    assert model.weight.abs().max().item() < 1e-4
    assert all(10 <= r.evaluations == r.backward_passes <= 25 for r in results[:2])
    with pytest.raises(TaskError, match="no weight decay"):
        build_optimizer([one_weight()], OptimizerSpec(name="lbfgs", weight_decay=0.1))


def test_unknown_names_are_refused():
    with pytest.raises(TaskError, match="optimizer is unknown"):
        build_optimizer([one_weight()], OptimizerSpec(name="lion"))
    optimizer = build_optimizer([one_weight()], OptimizerSpec())
    with pytest.raises(TaskError, match="schedule is unknown"):
        build_schedule(optimizer, OptimizerSpec(schedule="cyclic"))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule_follows_its_formula_at_every_step(schedule):
    spec = OptimizerSpec(learning_rate=0.4, schedule=schedule, total_steps=20, warmup_steps=4)
    weight = one_weight()
    optimizer = build_optimizer([weight], spec)
    built = build_schedule(optimizer, spec)
    for step in range(25):
        share = min(1.0, (step - 4) / 16)
        decay = {
            "constant": 1.0,
            "linear": 1.0 - share,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * share)),
        }
        factor = (step + 1) / 4 if step < 4 else decay[schedule]
        assert schedule_factor(spec, step) == pytest.approx(factor, abs=1e-9)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * factor, abs=1e-9)
        weight.grad = torch.ones(1)
        optimizer.step()
        built.step()


def test_a_rate_that_never_changes_has_no_schedule():
    optimizer = build_optimizer([one_weight()], OptimizerSpec())
    assert build_schedule(optimizer, OptimizerSpec()) is None
    assert build_schedule(optimizer, OptimizerSpec(warmup_steps=3)) is not None
