"""What a jump and a rollback do to optimizer, schedule and statistics, against formulas."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hybridcore.errors import BatchError, SnapshotError
from hybridcore_torch import TorchAdapter


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


def batch(n=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, k, generator=generator) for k in (5, 2))


def flat(tensors):
    return np.concatenate([t.detach().double().numpy().ravel() for t in tensors])


def gradient(model, data):
    twin = copy.deepcopy(model)
    return flat(torch.autograd.grad(squares(twin, data).mean(), list(twin.parameters())))


def velocity(optimizer):
    return flat([s["momentum_buffer"] for s in optimizer.state.values()])


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_velocity_is_scaled_by_the_cosine_with_the_next_gradient(sign, maximize):
    """F59: v' = momentum * max(0, cos(v, g)) * v + g, computed in float64 from autograd's gradient."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, maximize=maximize)
    adapter = TorchAdapter(model, optimizer, squares)
    for _ in range(3):
        adapter.train_step(batch())
    for state in optimizer.state.values():
        state["momentum_buffer"].mul_(sign)
    deltas = tuple(0.01 * torch.ones_like(b) for b in adapter.read_params())
    adapter.apply_delta(deltas)
    adapter.after_jump(deltas)
    old = velocity(optimizer)
    fresh = gradient(model, batch(seed=2)) * (-1.0 if maximize else 1.0)
    cosine = old @ fresh / (np.linalg.norm(old) * np.linalg.norm(fresh))
    assert (cosine > 0) == (sign > 0)
    adapter.train_step(batch(seed=2))
    np.testing.assert_allclose(
        velocity(optimizer), 0.9 * max(0.0, cosine) * old + fresh, rtol=1e-4, atol=1e-6
    )
    old = velocity(optimizer)
    fresh = gradient(model, batch(seed=3)) * (-1.0 if maximize else 1.0)
    adapter.train_step(batch(seed=3))
    np.testing.assert_allclose(velocity(optimizer), 0.9 * old + fresh, rtol=1e-4, atol=1e-6)


def test_a_rollback_and_a_skipped_step_treat_the_waiting_rule_rightly():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    adapter = TorchAdapter(model, optimizer, squares)
    adapter.train_step(batch())
    point = adapter.snapshot()
    adapter.after_jump(adapter.read_params())
    assert adapter.state_dict()["pending"] is True
    x, y = batch()
    adapter.train_step((x, y * float("nan")))
    assert adapter.state_dict()["pending"] is True
    adapter.restore(point)
    assert adapter.state_dict()["pending"] is False


def test_adam_keeps_moments_and_step_count():
    """F59."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    adapter = TorchAdapter(model, optimizer, squares)
    for _ in range(3):
        adapter.train_step(batch())
    before = copy.deepcopy(optimizer.state_dict()["state"])
    deltas = tuple(0.1 * torch.ones_like(b) for b in adapter.read_params())
    adapter.apply_delta(deltas)
    adapter.after_jump(deltas)
    fresh = gradient(model, batch(seed=2))
    old = flat([before[i]["exp_avg"] for i in before])
    adapter.train_step(batch(seed=2))
    new = flat([s["exp_avg"] for s in optimizer.state.values()])
    np.testing.assert_allclose(new, 0.9 * old + 0.1 * fresh, rtol=1e-4, atol=1e-7)
    assert [float(s["step"]) for s in optimizer.state.values()] == [4.0] * 4


def test_lbfgs_starts_afresh_after_a_jump():
    """The next step equals the first step of a new optimizer at the same weights."""
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)
    adapter = TorchAdapter(model, optimizer, squares)
    adapter.train_step(batch())
    state = optimizer.state[next(model.parameters())]
    assert len(state["old_dirs"]) > 0
    deltas = tuple(0.01 * torch.ones_like(b) for b in adapter.read_params())
    adapter.apply_delta(deltas)
    adapter.after_jump(deltas)
    twin = copy.deepcopy(model)
    new = TorchAdapter(twin, torch.optim.LBFGS(twin.parameters(), lr=0.5, max_iter=3), squares)
    adapter.train_step(batch(seed=2))
    new.train_step(batch(seed=2))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_restore_takes_the_schedule_along_and_keeps_the_tensors():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    adapter = TorchAdapter(model, optimizer, squares, scheduler=schedule)

    def steps(count):
        for _ in range(count):
            adapter.train_step(batch())
            schedule.step()

    steps(2)
    point = adapter.snapshot()

    def tensors():
        return [t for s in optimizer.state.values() for t in s.values()]

    held = tensors()
    steps(3)
    rate_after = adapter.learning_rate
    adapter.restore(point)
    assert schedule.last_epoch == 2
    assert adapter.learning_rate == pytest.approx(0.05 * (1 + np.cos(np.pi * 0.2)), rel=1e-6)
    assert all(a is b for a, b in zip(held, tensors(), strict=True))
    steps(3)
    assert adapter.learning_rate == rate_after
    assert adapter.snapshot_nbytes() == point.nbytes


def test_snapshot_takes_the_scaler_along():
    model = net()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares, scaler=scaler)
    point = adapter.snapshot()
    x, y = batch()
    adapter.train_step((x, y * float("inf")))
    assert scaler.get_scale() == 32.0
    adapter.restore(point)
    assert scaler.get_scale() == 64.0


def test_foreign_objects_are_no_snapshots():
    model = net()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares)
    with pytest.raises(SnapshotError, match="no snapshot"):
        adapter.restore(model.state_dict())


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_probe_normalises_by_the_probe_batch():
    """Equals a by-hand evaluation with the batch's biased variance, whatever the running statistics."""
    model = normed()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares)
    model[1].running_mean.fill_(50.0)
    x, y = batch()
    with torch.no_grad():
        hidden = model[0](x).double()
        normal = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + model[1].eps).sqrt()
        want = (model[3](normal.float()) - y).square().mean(1)
    np.testing.assert_allclose(adapter.probe_loss((x, y)), want.double().numpy(), rtol=1e-4)
    assert torch.equal(model[1].running_mean, torch.full((4,), 50.0))
    assert model[1].num_batches_tracked == 0


def test_probe_respects_frozen_norms_and_puts_every_mode_back():
    model = normed()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares)
    model[1].eval()
    model[1].running_mean.fill_(3.0)
    x, y = batch()
    with torch.no_grad():
        want = (model[3]((model[0](x) - 3.0) / (1.0 + model[1].eps) ** 0.5) - y).square().mean(1)
    np.testing.assert_allclose(adapter.probe_loss((x, y)), want.double().numpy(), rtol=1e-5)
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert model[1].track_running_stats is True


def test_refreshed_statistics_are_means_over_the_batches():
    """F86: closed form from float64 moments of the layer's inputs."""
    model = normed()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares)
    adapter.train_step(batch())
    batches = [batch(seed=s) for s in (4, 5, 6)]
    count = model[1].num_batches_tracked.clone()
    adapter.refresh_statistics(iter(batches))
    with torch.no_grad():
        inputs = [model[0](x).double() for x, _ in batches]
    want_mean = torch.stack([h.mean(0) for h in inputs]).mean(0)
    want_var = torch.stack([h.var(0) for h in inputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean.double(), want_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[1].running_var.double(), want_var, rtol=1e-4, atol=1e-5)
    assert torch.equal(model[1].num_batches_tracked, count)
    assert model[1].momentum == 0.1


@pytest.mark.parametrize("batches", [[], [(torch.ones(3, 9), torch.ones(3, 2))], "nan"])
def test_statistics_survive_batches_that_say_nothing(batches):
    model = normed()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares)
    adapter.train_step(batch())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if batches == "nan":
        batches = [(torch.full((3, 5), float("nan")), torch.ones(3, 2))]
        adapter.refresh_statistics(batches)
    elif batches:
        with pytest.raises(BatchError):
            adapter.refresh_statistics(batches)
    else:
        adapter.refresh_statistics(batches)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model[1].momentum == 0.1


@pytest.mark.parametrize(
    ("make", "memory"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 1.0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.75), 4.0),
        (lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), betas=(0.5, 0.999)), 2.0),
        (lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5), 2.0),
        (lambda p: torch.optim.LBFGS(p, lr=0.1), 1.0),
    ],
)
def test_rate_and_memory_are_read_from_the_optimizer(make, memory):
    model = net()
    adapter = TorchAdapter(model, make(model.parameters()), squares)
    assert adapter.learning_rate == pytest.approx(0.1)
    assert adapter.momentum_memory == pytest.approx(memory)
    adapter.optimizer.param_groups[0]["lr"] = 0.025
    assert adapter.learning_rate == 0.025


def test_moments_equal_numpy():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    adapter = TorchAdapter(model, optimizer, squares)
    assert set(adapter.moments().values()) == {0.0}
    for seed in range(3):
        adapter.train_step(batch(seed=seed))
    first = flat([s["exp_avg"] for s in optimizer.state.values()])
    second = flat([s["exp_avg_sq"] for s in optimizer.state.values()])
    got = adapter.moments()
    want = {"m_mean": first.mean(), "m_std": first.std(), "v_mean": second.mean(), "v_std": second.std()}
    assert got == pytest.approx(want, rel=1e-5)
