"""The three ways to train with an attached engine, on real models (F58, F59, F60, F62)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hybridcore.config import BudgetConfig, HybridConfig, PhasesConfig, ProbeConfig
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.engine import Engine
from hybridcore.events import Event
from hybridcore.predictors.last_update import LastUpdate
from hybridcore_torch import Hybrid, TorchAdapter, hybridize


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


def data(count, n=16):
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(5, 2, generator=generator)
    inputs = [torch.randn(n, 5, generator=generator) for _ in range(count)]
    return [(x, torch.tanh(x @ target)) for x in inputs]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


def attach(mode="jump", lr=0.003, **options):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    adapter = TorchAdapter(model, optimizer, squares, **options)
    config = HybridConfig(
        phases=PhasesConfig(warmup_steps=5, full_steps=5, predict_mode=mode, predict_steps=4),
        budget=BudgetConfig(share=1.0, grace_steps=1000.0),
        probe=ProbeConfig(batches=1),
    )
    controller = Fixed(FixedConfig(horizon=4.0, full_steps=5, correct_steps=5))
    engine = Engine(adapter, config, controller, {"last-update": LastUpdate()}, probes=data(1))
    return model, optimizer, Hybrid(engine, adapter)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("mode", ["jump", "step"])
def test_batch_closure_and_own_loop_train_alike(mode):
    batches = data(60)
    by_batch, _, one = attach(mode)
    real = []
    for batch in batches:
        one.step(batch)
        real.append(one.stepped)
    by_closure, _, two = attach(mode)
    calls = 0
    for batch in batches:

        def closure(batch=batch):
            nonlocal calls
            calls += 1
            return squares(by_closure, batch).mean()

        two.step(closure)
    own, optimizer, three = attach(mode)
    loss = None
    for batch in batches:
        if three.needs_backward:
            optimizer.zero_grad()
            loss = squares(own, batch).mean()
            loss.backward()
            optimizer.step()
        three.advance(loss)
    assert one.engine.counts.jumps > 0
    assert one.engine.counts.jumps == two.engine.counts.jumps == three.engine.counts.jumps
    assert sum(real) == calls == one.engine.counts.real_steps == three.engine.counts.real_steps
    assert (sum(real) < 60) == (mode == "step")
    assert torch.equal(weights(by_batch), weights(by_closure))
    assert torch.equal(weights(by_batch), weights(own))
    assert all(p.grad_fn is None and p.requires_grad for p in by_batch.parameters())


def test_a_jump_moves_the_weights_and_training_gains_by_it():
    """F23: against the same loop without an engine, far below the best learning rate."""
    batches = data(150)
    model, _, hybrid = attach(lr=0.001)
    moved = []
    hybrid.engine.events.listen(lambda event, payload: moved.append(event))
    for batch in batches:
        hybrid.step(batch)
    plain = net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.001, momentum=0.5)
    for batch in batches:
        optimizer.zero_grad()
        squares(plain, batch).mean().backward()
        optimizer.step()
    assert moved.count(Event.JUMP) == hybrid.engine.counts.jumps > 0
    x, y = data(1, 256)[0]
    with torch.no_grad():
        assert squares(model, (x, y)).mean() < squares(plain, (x, y)).mean()
    summary = hybrid.finish()
    assert summary["real_steps"] == 150


def test_accumulating_loop_with_scaler_is_followed_by_the_hook():
    """Two micro-batches a step; the scaler skips one update: the engine hears of real updates only."""
    model, optimizer, hybrid = attach()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    heard = []
    hybrid.engine.events.listen(
        lambda event, payload: heard.append(payload["loss"]) if event is Event.REAL_STEP else None
    )
    losses, updates = [], 0
    for index, (x, y) in enumerate(data(20)):
        poison = math.inf if index == 7 else 1.0
        loss = squares(model, (x, y * poison)).mean()
        scaler.scale(loss / 2).backward()
        losses.append(loss.item())
        if index % 2 == 1:
            before = weights(model).clone()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            updates += not torch.equal(weights(model), before)
        hybrid.advance(loss)
        assert hybrid.stepped == (index % 2 == 1 and index != 7)
    assert updates == 9
    assert hybrid.engine.counts.real_steps == 9
    assert heard[0] == pytest.approx((losses[0] + losses[1]) / 2)
    assert all(map(math.isfinite, heard[4:]))


def test_hybridize_takes_five_lines_and_wraps_nothing(tmp_path):
    """F58: with a configuration object, with a file, and with none."""
    file = tmp_path / "hybrid.toml"
    file.write_text("[phases]\nwarmup_steps = 7\n")
    default = HybridConfig().phases.warmup_steps
    own = HybridConfig(phases=PhasesConfig(warmup_steps=3))
    for config, warmup in ((None, default), (file, 7), (own, 3)):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        heard, kinds = [], (type(model), type(optimizer))
        hybrid = hybridize(
            model,
            optimizer,
            config,
            loss_fn=squares,
            probe=data(2),
            events=[lambda event, payload, heard=heard: heard.append(event)],
        )
        losses = [hybrid.step(batch) for batch in data(60)]
        assert (type(model), type(optimizer)) == kinds
        assert hybrid.engine.config.phases.warmup_steps == warmup
        assert hybrid.adapter.model is model
        assert hybrid.adapter.optimizer is optimizer
        assert all(map(math.isfinite, losses))
        assert heard.count(Event.REAL_STEP) == 60
