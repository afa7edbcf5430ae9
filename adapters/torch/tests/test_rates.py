"""Scaled learning rates that no scheduler of PyTorch takes back (F40), and adaptive clipping (F69)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as ls

from hybridcore_torch import TorchAdapter
from hybridcore_torch.adaptive_clipping import clip_units
from hybridcore_torch.rates import scale_rates

SCHEDULERS = {
    "none": lambda o: None,
    "lambda": lambda o: ls.LambdaLR(o, lambda s: 1.0 / (1 + s)),
    "multiplicative": lambda o: ls.MultiplicativeLR(o, lambda s: 0.9),
    "step": lambda o: ls.StepLR(o, 3),
    "multi-step": lambda o: ls.MultiStepLR(o, [2, 6]),
    "exponential": lambda o: ls.ExponentialLR(o, 0.9),
    "constant": lambda o: ls.ConstantLR(o, 0.5, 6),
    "linear": lambda o: ls.LinearLR(o, 0.1, 1.0, 8),
    "polynomial": lambda o: ls.PolynomialLR(o, 12, 2.0),
    "cosine": lambda o: ls.CosineAnnealingLR(o, 10, eta_min=0.01),
    "warm-restarts": lambda o: ls.CosineAnnealingWarmRestarts(o, 4, eta_min=0.01),
    "one-cycle": lambda o: ls.OneCycleLR(o, max_lr=0.5, total_steps=20, cycle_momentum=False),
    "cyclic": lambda o: ls.CyclicLR(o, 0.05, 0.5, step_size_up=4, cycle_momentum=False),
    "sequential": lambda o: ls.SequentialLR(
        o, [ls.LinearLR(o, 0.1, 1.0, 4), ls.CosineAnnealingLR(o, 8)], [4]
    ),
    "chained": lambda o: ls.ChainedScheduler([ls.ConstantLR(o, 0.5, 6), ls.ExponentialLR(o, 0.9)]),
}


def rates(name, at=None, factor=1.0, tensor=False):
    """Learning rates of both groups over 12 steps; at step `at` they are scaled."""
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    one, other = (torch.tensor(v, dtype=torch.float64) if tensor else v for v in (0.2, 0.1))
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": one}, {"params": weights[1:], "lr": other}])
    scheduler = SCHEDULERS[name](optimizer)
    found = []
    for step in range(12):
        if step == at:
            scale_rates(optimizer, scheduler, factor)
        found.append([float(g["lr"]) for g in optimizer.param_groups])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return np.array(found)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("at", [0, 5])
def test_f40_all_later_rates_are_scaled_and_none_before(name, at):
    plain, scaled = rates(name), rates(name, at, 0.25)
    np.testing.assert_array_equal(scaled[:at], plain[:at])
    np.testing.assert_allclose(scaled[at:], 0.25 * plain[at:], rtol=1e-12)


@pytest.mark.parametrize("name", ["none", "lambda", "cosine", "step"])
def test_f40_rates_that_are_tensors_are_scaled_in_place(name):
    plain, scaled = rates(name, tensor=True), rates(name, 4, 0.5, tensor=True)
    np.testing.assert_allclose(scaled[4:], 0.5 * plain[4:], rtol=1e-12)


def test_f40_the_plateau_scheduler_goes_on_from_the_scaled_rate():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.4)
    scheduler = ls.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, min_lr=0.01)
    scale_rates(optimizer, scheduler, 0.5)
    scheduler.step(1.0)
    scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def made(**more):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = more.pop("scheduler", lambda o: None)(optimizer)
    loss_fn = lambda m, b: (m(b[0]) - b[1]).square().mean(1)  # noqa: E731
    adapter = TorchAdapter(model, optimizer, loss_fn, scheduler=scheduler, **more)
    rng = np.random.default_rng(0)
    batch = tuple(torch.tensor(rng.standard_normal(s), dtype=torch.float32) for s in ((16, 4), (16, 1)))
    return adapter, model, scheduler, batch


def test_f40_a_snapshot_takes_the_scheduler_s_rates_back():
    adapter, _, scheduler, batch = made(scheduler=SCHEDULERS["lambda"])
    point = adapter.snapshot()

    def trace():
        found = []
        for _ in range(4):
            adapter.train_step(batch)
            scheduler.step()
            found.append(adapter.learning_rate)
        return found

    plain = trace()
    adapter.restore(point)
    adapter.scale_learning_rate(0.5)
    assert trace() == [0.5 * rate for rate in plain]
    adapter.restore(point)
    assert trace() == plain


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2, 2)])
def test_f69_units_are_clipped_to_the_stated_norm(shape):
    rng = np.random.default_rng(1)
    w, g = rng.standard_normal(shape), rng.standard_normal(shape)
    g *= 10.0 ** np.arange(-3, 3).reshape(-1, *[1] * (len(shape) - 1))
    weight = torch.tensor(w, requires_grad=True)
    weight.grad = torch.tensor(g)
    clip_units([weight], 0.1)
    rows = zip(w, g, strict=True) if len(shape) > 1 else [(w, g)]
    expected = [b * min(1.0, 0.1 * max(np.linalg.norm(a), 1e-3) / np.linalg.norm(b)) for a, b in rows]
    np.testing.assert_allclose(weight.grad.numpy(), np.reshape(expected, shape), rtol=1e-12)


def test_f69_the_update_is_that_of_the_clipped_gradient():
    adapter, model, _, batch = made()
    other, twin, _, _ = made()
    adapter.clip_adaptively(0.02)
    adapter.train_step(batch)
    losses = (twin(batch[0]) - batch[1]).square().mean()
    losses.backward()
    clip_units(list(twin.parameters()), 0.02)
    other.optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_f69_a_gradient_that_is_not_finite_is_still_found(bad):
    adapter, model, _, batch = made()
    adapter.clip_adaptively(0.01)
    before = [p.detach().clone() for p in model.parameters()]
    assert adapter.train_step((batch[0] * bad, batch[1])).skipped
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_f62_a_step_that_the_scaler_skips_is_an_overflow_and_a_bad_loss_is_none():
    adapter, _, _, batch = made(scaler=torch.amp.GradScaler("cpu", init_scale=1e38))
    result = adapter.train_step((batch[0], batch[1] * 1e4))
    assert result.skipped and result.overflow
    assert not adapter.train_step((batch[0] * float("nan"), batch[1])).overflow
    plain, _, _, _ = made()
    assert not plain.train_step((batch[0] * float("inf"), batch[1])).overflow
