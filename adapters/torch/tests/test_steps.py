"""Real steps against PyTorch's own loop: accumulation, precision, scaling, skipping, memory."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybridcore.errors import BatchError, ModelError, ProbeError
from hybridcore_torch import TorchAdapter


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


def net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).to(dtype)


def batch(n=10, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, k, generator=generator, dtype=torch.float64).to(dtype) for k in (5, 2))


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_step_equals_the_plain_loop(kind):
    ours, plain = net(), net()

    def make(model):
        if kind == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    adapter, optimizer = TorchAdapter(ours, make(ours), squares, norm_every=1), make(plain)
    for seed in range(5):
        data = batch(seed=seed)
        result = adapter.train_step(data)
        optimizer.zero_grad()
        loss = F.mse_loss(plain(data[0]), data[1])
        loss.backward()
        flat = torch.cat([p.grad.double().flatten() for p in plain.parameters()])
        optimizer.step()
        assert result.loss == pytest.approx(loss.item(), rel=1e-6)
        assert result.grad_norm == pytest.approx(flat.norm().item(), rel=1e-6)
        assert result.n_examples == 10
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("parts", [2, 3, 10, 64])
def test_accumulation_equals_the_large_batch(parts):
    """F61, in float64; 3 does not divide 10, 64 exceeds it."""
    whole, cut = net(torch.float64), net(torch.float64)
    one = TorchAdapter(whole, torch.optim.SGD(whole.parameters(), lr=0.5), squares)
    many = TorchAdapter(cut, torch.optim.SGD(cut.parameters(), lr=0.5), squares, accumulate=parts)
    for seed in range(3):
        data = batch(dtype=torch.float64, seed=seed)
        a, b = one.train_step(data), many.train_step(data)
        assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), rel=1e-12)
        assert b.n_examples == 10
    for p, q in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_accumulation_counts_its_forwards_and_needs_tensors():
    model, sizes = net(), []

    def counting(model, data):
        sizes.append(len(data["x"]))
        return squares(model, (data["x"], data["y"]))

    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), counting, accumulate=3)
    x, y = batch()
    result = adapter.train_step({"x": x, "y": y, "note": "kept"})
    assert sizes == [3, 3, 4]
    assert result.backward_passes == 3
    with pytest.raises(BatchError, match="micro-batches"):
        adapter.train_step("no tensors")


def test_clipping_bounds_the_update():
    model = net()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=2.0), squares, max_grad_norm=0.01)
    result = adapter.train_step(batch())
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert result.grad_norm == 0.01
    assert (after - before).norm().item() == pytest.approx(0.02, rel=1e-4)


def test_autocast_computes_in_the_dtype_asked_for():
    """F62."""
    model, seen = net(), []

    def watching(model, data):
        out = model(data[0])
        seen.append(out.dtype)
        return (out.float() - data[1]).square().mean(1)

    adapter = TorchAdapter(
        model, torch.optim.SGD(model.parameters(), lr=0.1), watching, autocast=torch.bfloat16
    )
    adapter.train_step(batch())
    adapter.probe_loss(batch())
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    custom = TorchAdapter(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        watching,
        autocast=lambda: torch.autocast("cpu", dtype=torch.float16),
    )
    custom.probe_loss(batch())
    assert seen[-1] is torch.float16


@pytest.mark.parametrize("fused", [False, True])
def test_scaler_scales_back_and_a_skipped_step_is_reported(fused):
    """F62: an overflow changes no weight and no optimizer state; the scale comes down."""
    model, plain = net(), net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    adapter = TorchAdapter(model, optimizer, squares, scaler=scaler)
    reference = torch.optim.AdamW(plain.parameters(), lr=0.01, fused=fused)
    result = adapter.train_step(batch())
    F.mse_loss(plain(batch()[0]), batch()[1]).backward()
    reference.step()
    assert result.skipped is False
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    before = state(model)
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    steps = [float(s["step"]) for s in optimizer.state.values()]
    x, y = batch()
    assert adapter.train_step((x, y * 1e30)).skipped is True  # the loss overflows, the gradient does not
    assert scaler.get_scale() == 1024.0
    assert adapter.train_step((x, y * math.inf)).skipped is True
    assert_equal(state(model), before)
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, optimizer.state.values(), strict=True))
    assert steps == [float(s["step"]) for s in optimizer.state.values()]
    assert scaler.get_scale() == 512.0
    assert adapter.train_step(batch()).skipped is False
    assert adapter.real_steps == 2


@pytest.mark.parametrize("fused", [False, True])
def test_a_hosts_own_scaler_loop_is_counted_truly(fused):
    """The hook counts real updates only, also where a fused optimizer is called but told to do nothing."""
    model, twin = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    adapter = TorchAdapter(model, optimizer, squares)
    scaler, calls = torch.amp.GradScaler("cpu", init_scale=8.0), []
    adapter.listen_before_step(lambda: calls.append(state(model)))
    x, y = batch()
    for target, counted in ((y, 1), (y * math.inf, 1), (y, 2)):
        optimizer.zero_grad()
        twin.load_state_dict(model.state_dict())
        loss = F.mse_loss(model(x), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert adapter.real_steps == counted
        assert len(calls) == counted
        if math.isfinite(loss.item()):
            assert_equal(calls[-1], twin.state_dict())
            grads = torch.autograd.grad(F.mse_loss(twin(x), target), list(twin.parameters()))
            norm = torch.cat([g.flatten() for g in grads]).norm().item()
            assert adapter.last_grad_norm == pytest.approx(norm, rel=1e-4)


def test_finite_loss_with_non_finite_gradient_is_skipped():
    """F41: the square root has a finite value and an infinite slope at zero."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    adapter = TorchAdapter(model, optimizer, lambda m, b: m(b).abs().sqrt().squeeze(1))
    result = adapter.train_step(torch.ones(3, 2))
    assert result.loss == 0.0
    assert result.skipped is True
    assert torch.equal(model.weight, torch.zeros(1, 2))
    assert len(optimizer.state) == 0


def test_without_the_gradient_norm_only_the_loss_is_guarded():
    model = net()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares, grad_norm=False)
    assert math.isnan(adapter.train_step(batch()).grad_norm)
    x, y = batch()
    assert adapter.train_step((x, y * math.nan)).skipped is True


def test_any_buffer_that_a_forward_changes_comes_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 2))
            self.register_buffer("mask", torch.ones(5))
            self.register_buffer("peak", torch.zeros(()))

        def forward(self, x):
            self.peak.copy_(torch.maximum(self.peak, x.detach().abs().max()))
            return self.linear(x * self.mask)

    model = Counting()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares)
    adapter.train_step(batch())
    before = state(model)
    x, y = batch(seed=3)
    assert adapter.train_step((x * 5.0, y * math.nan)).skipped is True
    assert_equal(state(model), before)
    adapter.train_step((x * 5.0, y))
    assert not torch.equal(before["peak"], model.peak)


def test_lbfgs_that_runs_into_nan_gives_the_weights_back():
    """The first evaluation is finite, a later one inside the same step is not."""
    weight = nn.Parameter(torch.tensor([0.5]))
    model = nn.Module()
    model.weight = weight
    calls = []

    def loss_fn(model, data):
        calls.append(model.weight.item())
        return (model.weight.log() * data).expand(2)  # minus infinity at 0, NaN below

    optimizer = torch.optim.LBFGS(model.parameters(), lr=10.0, max_iter=3)
    adapter = TorchAdapter(model, optimizer, loss_fn)
    result = adapter.train_step(torch.ones(1))
    assert result.backward_passes == len(calls) > 1
    assert result.skipped is True
    assert weight.item() == 0.5
    assert len(optimizer.state) == 0


def test_closure_step_equals_batch_step():
    a, b = net(), net()
    one = TorchAdapter(a, torch.optim.Adam(a.parameters()), squares)
    two = TorchAdapter(b, torch.optim.Adam(b.parameters()), squares)
    first = one.train_step(batch())
    second = two.closure_step(lambda: squares(b, batch()).mean())
    assert (first.loss, first.grad_norm) == (second.loss, second.grad_norm)
    assert_equal(state(a), state(b))
    with pytest.raises(ZeroDivisionError):
        two.closure_step(lambda: 1 / 0)


def test_no_graph_is_left_anywhere():
    """F60."""
    model = net()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares)
    adapter.train_step(batch())
    before = adapter.read_params()
    deltas = tuple(b * 0.01 for b in before)
    adapter.apply_delta(deltas, 2.0)
    adapter.write_params(adapter.add_params(before, 0.5, 0.5))
    with adapter.weights(before):
        losses = adapter.probe_loss(batch())
    tensors = [*before, *deltas, *model.parameters()]
    assert all(t.grad_fn is None for t in tensors)
    assert not any(t.requires_grad for t in (*before, *deltas))
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    assert losses.shape == (10,)


def test_memory_stays_flat():
    """F67: tensors alive and their bytes after 500 steps are those after 50."""
    model = net()
    adapter = TorchAdapter(model, torch.optim.AdamW(model.parameters(), lr=1e-3), squares)
    data = batch()
    held = {"mean": adapter.read_params(), "point": adapter.snapshot()}

    def steps(count):
        for index in range(count):
            held["mean"] = adapter.add_params(held["mean"], 0.1, 0.9)
            adapter.train_step(data)
            if index % 10 == 0:
                held["point"] = adapter.snapshot()
                adapter.apply_delta(tuple(torch.zeros_like(b) for b in adapter.read_params()))
                adapter.after_jump(held["mean"])
                with adapter.weights(held["mean"]):
                    adapter.probe_loss(data)
                adapter.restore(held["point"])

    def alive():
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
        return len(tensors), sum(t.numel() * t.element_size() for t in tensors)

    steps(50)
    early = alive()
    steps(450)
    assert alive() == early


def test_probes_share_random_numbers_and_mean_losses_cannot_probe():
    """F81: a loss function that draws noise is compared on the same draws."""
    model = net()

    def noisy(model, data):
        return squares(model, (data[0] + torch.randn_like(data[0]), data[1]))

    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), noisy)
    first = adapter.probe_loss(batch())
    torch.manual_seed(99)
    expected = torch.randn(3)
    torch.manual_seed(99)
    assert (adapter.probe_loss(batch()) == first).all()
    assert torch.equal(torch.randn(3), expected)
    scalar = TorchAdapter(
        model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, b: squares(m, b).mean()
    )
    assert scalar.train_step(batch()).n_examples == 10
    with pytest.raises(ProbeError, match="per-example"):
        scalar.probe_loss(batch())


def test_what_cannot_be_trained_is_refused():
    model = net()
    with pytest.raises(ModelError, match="no parameters"):
        TorchAdapter(nn.ReLU(), torch.optim.SGD(model.parameters(), lr=0.1), squares)
    with pytest.raises(ModelError, match="trains no parameter"):
        TorchAdapter(net(), torch.optim.SGD(model.parameters(), lr=0.1), squares)
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ModelError, match="scaler"):
        TorchAdapter(model, optimizer, squares, scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ModelError, match="accumulate"):
        TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares, accumulate=0)
    with pytest.raises(ModelError, match="autocast"):
        TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares, autocast="bfloat16")
    lazy = nn.LazyLinear(2)
    with pytest.raises(ModelError, match="cannot be trained by prediction"):
        TorchAdapter(lazy, torch.optim.SGD(lazy.parameters(), lr=0.1), squares)


def test_parameters_with_new_memory_are_followed_and_moved_ones_refused():
    model = net()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squares)
    out = adapter.read_params()
    for p in model.parameters():
        p.data = torch.full_like(p, 2.0)
    assert torch.equal(adapter.read_params(out)[0], torch.full((adapter.layout.total,), 2.0))
    model[0].weight.data = model[0].weight.data.t().contiguous().t()  # no longer contiguous
    model[0].weight.data[3, 1] = 7.0
    spec = next(p for p in adapter.layout.params if p.name == "0.weight")
    assert adapter.read_params(out)[0][spec.offset + 3 * 5 + 1] == 7.0
    model.double()
    with pytest.raises(ModelError, match="changed"):
        adapter.read_params()


def test_a_snapshot_in_use_is_never_overwritten():
    """Its memory is used again only after nobody holds it."""
    model = net()
    adapter = TorchAdapter(model, torch.optim.Adam(model.parameters()), squares)
    adapter.train_step(batch())
    first = adapter.snapshot()
    kept = [t.clone() for t in first.params]
    for _ in range(3):
        adapter.train_step(batch())
        adapter.snapshot()
    assert all(torch.equal(a, b) for a, b in zip(first.params, kept, strict=True))
    address = first.params[0].data_ptr()
    del first
    assert adapter.snapshot().params[0].data_ptr() == address


def test_small_models_repeat_the_norm_but_check_every_gradient():
    """F41, F46: between two measurements the norm is repeated; an infinite gradient is found at once."""
    model = net()
    poison = {"on": False}

    def loss_fn(model, data):
        losses = squares(model, data)
        # A finite loss with an infinite gradient: the square root's slope at zero.
        return losses + (losses.detach() * 0 + model[0].weight[0, 0] * 0).sqrt() if poison["on"] else losses

    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn, norm_every=3)
    norms = [adapter.train_step(batch(seed=s)).grad_norm for s in range(6)]
    assert norms[0] == norms[1] == norms[2] != norms[3] == norms[4] == norms[5]
    before = [p.detach().clone() for p in model.parameters()]
    poison["on"] = True
    result = adapter.train_step(batch(seed=7))
    assert result.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
