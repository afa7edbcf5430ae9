"""Updates that are queued before their numbers are read, as on a GPU; here by fused CPU optimizers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import hybridcore_torch.steps as steps
from hybridcore_torch import TorchAdapter
from hybridcore_torch.ahead import can_refuse

RULES = {
    "sgd": lambda p, **k: torch.optim.SGD(p, lr=0.1, **k),
    "momentum": lambda p, **k: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, **k),
    "adamw": lambda p, **k: torch.optim.AdamW(p, lr=0.01, **k),
    "adam": lambda p, **k: torch.optim.Adam(p, lr=0.01, amsgrad=True, **k),
    "adagrad": lambda p, **k: torch.optim.Adagrad(p, lr=0.01, **k),
}


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(10, k, generator=generator) for k in (5, 2))


def made(rule, fused=True, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 2))
    return TorchAdapter(model, RULES[rule](model.parameters(), fused=fused), squares, norm_every=1, **options)


def everything(adapter):
    found = {k: v.clone() for k, v in adapter.model.state_dict().items()}
    for i, state in enumerate(adapter.optimizer.state.values()):
        found |= {f"{i}.{k}": v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)}
    return found


def assert_equal(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.fixture
def ahead(monkeypatch):
    """Every step that can go ahead does; counts them."""
    count = [0]
    update = steps.update_unless

    def counting(*arguments):
        count[0] += 1
        update(*arguments)

    monkeypatch.setattr(steps, "_works_ahead", lambda loss: True)
    monkeypatch.setattr(steps, "update_unless", counting)
    return count


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_those_of_an_optimizer_that_waits(rule, ahead, monkeypatch):
    ours, waiting = made(rule), made(rule)
    for seed in range(6):
        results = [ours.train_step(batch(seed))]
        with monkeypatch.context() as context:
            context.setattr(steps, "_works_ahead", lambda loss: False)
            results.append(waiting.train_step(batch(seed)))
        assert results[0].loss == results[1].loss
        assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-6)
    assert_equal(everything(ours), everything(waiting))
    assert ahead == [6 if rule in ("sgd", "adagrad") else 5]  # the first step makes the state
    assert ours.real_steps == 6


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_f41_a_bad_batch_changes_nothing(rule, bad, ahead):
    adapter = made(rule)
    for seed in range(3):
        adapter.train_step(batch(seed))
    before, counted = everything(adapter), ahead[0]
    x, y = batch(3)
    result = adapter.train_step((x, y * bad))
    assert ahead[0] == counted + 1
    assert result.skipped is True
    assert_equal(everything(adapter), before)
    assert adapter.real_steps == 3
    assert not hasattr(adapter.optimizer, "found_inf")
    assert adapter.train_step(batch(4)).skipped is False
    assert adapter.real_steps == 4


def test_f41_a_finite_loss_with_a_gradient_that_is_not_changes_nothing(ahead):
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    adapter = TorchAdapter(model, optimizer, lambda m, b: m(b).abs().sqrt().squeeze(1))
    nn.init.zeros_(model.weight)
    assert adapter.train_step(torch.ones(3, 2)).skipped is True
    assert ahead == [1]
    assert torch.equal(model.weight, torch.zeros(1, 2))


def test_clipping_is_that_of_a_step_that_waits(ahead):
    ours, waiting = made("momentum", max_grad_norm=0.3), made("momentum", fused=False, max_grad_norm=0.3)
    for seed in range(6):
        a, b = ours.train_step(batch(seed)), waiting.train_step(batch(seed))
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-6)
    assert b.grad_norm <= 0.3
    assert_equal(everything(ours), everything(waiting), 1e-5)
    assert ahead == [5]


def test_a_step_after_a_jump_waits_for_its_velocity(ahead):
    adapter = made("momentum")
    for seed in range(3):
        adapter.train_step(batch(seed))
    deltas = adapter.read_params()
    adapter.apply_delta(deltas, 0.01)
    adapter.after_jump(deltas)
    counted = ahead[0]
    adapter.train_step(batch(3))
    assert ahead[0] == counted
    adapter.train_step(batch(4))
    assert ahead[0] == counted + 1


def test_only_optimizers_that_can_refuse_go_ahead(ahead):
    for rule in RULES:
        adapter = made(rule, fused=False)
        for seed in range(2):
            adapter.train_step(batch(seed))
        assert not can_refuse(adapter.optimizer)
    unfused = nn.Linear(2, 2)
    assert not can_refuse(torch.optim.RMSprop(unfused.parameters()))
    assert ahead == [0]
