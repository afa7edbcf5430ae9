"""F63, F64, F66: state in host memory, checkpointed activations, and the allocator's numbers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hybridcore.configfile import config_from_dict
from hybridcore.protocols import MemoryAdapter, PeakMemoryAdapter
from hybridcore_torch import TorchAdapter, hybridize
from hybridcore_torch.offload import OptimizerOffload

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "fused adamw": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
}


def losses(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def made(make=OPTIMIZERS["adamw"]):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    return TorchAdapter(model, make(model.parameters()), losses)


def batches(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(32, 6, generator=rng)
        yield x, x[:, :3].argmax(1)


def state_bytes(optimizer):
    return sum(
        v.untyped_storage().nbytes()
        for s in optimizer.state.values()
        for v in s.values()
        if isinstance(v, torch.Tensor)
    )


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_state_goes_and_comes_back_bit_for_bit(make):
    adapter = made(make)
    for batch in batches(3):
        adapter.train_step(batch)
    optimizer = adapter.optimizer
    held = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    before, size = copy.deepcopy(optimizer.state_dict()), state_bytes(optimizer)
    adapter.offload_optimizer()
    assert state_bytes(optimizer) == 0 < size
    after = optimizer.state_dict()  # asking for it brings it back
    assert state_bytes(optimizer) == size
    now = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert all(a is b for a, b in zip(held, now, strict=True))
    for key, values in before["state"].items():
        for name, value in values.items():
            assert torch.equal(value, after["state"][key][name])


@pytest.mark.parametrize("use", ["train_step", "snapshot", "moments", "restore", "own step"])
def test_whatever_needs_the_state_finds_it(use):
    plain, away = made(), made()
    for batch in batches(3):
        plain.train_step(batch)
        away.train_step(batch)
    kept = away.snapshot()
    away.offload_optimizer()
    if use == "snapshot":
        away.restore(away.snapshot())
    elif use == "moments":
        assert away.moments() == plain.moments()
    elif use == "restore":
        away.restore(kept)
    elif use == "own step":
        for adapter in (plain, away):
            adapter.optimizer.zero_grad()
            losses(adapter.model, next(batches(1, seed=5))).mean().backward()
            adapter.optimizer.step()
    for batch in batches(3, seed=1):
        plain.train_step(batch)
        away.train_step(batch)
    for a, b in zip(plain.read_params(), away.read_params(), strict=True):
        assert torch.equal(a, b)


def test_shared_and_captured_memory_stays():
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    whole = torch.arange(8.0)
    optimizer.state[weight]["momentum_buffer"] = whole[:4]
    OptimizerOffload(optimizer).go()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], torch.arange(4.0))
    assert whole.untyped_storage().nbytes() == 32

    captured = torch.optim.Adam([weight], capturable=False)
    captured.state[weight] = {"step": torch.tensor(1.0), "exp_avg": torch.ones(4)}
    captured.param_groups[0]["capturable"] = True
    OptimizerOffload(captured).go()
    assert state_bytes(captured) > 0


def trained(memory, model=None, predictor="last-update", **history):
    """Predict phases of mode "step" with a jump per phase; sizes of the state while they last."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    config = config_from_dict(
        {
            "memory": memory,
            "phases": {"predict_mode": "step", "predict_steps": 4, "warmup_steps": 5, "full_steps": 5},
            "predictor": {"name": predictor},
            "history": {"window": 3, **history},
            "controller": {"name": "fixed", "fixed": {"horizon": 4.0}},
            "budget": {"share": 1.0, "count_seconds": False},
        }
    )
    run = hybridize(model, optimizer, config, loss_fn=losses, probe=list(batches(1, seed=9)))
    found, sizes = [], []
    for batch in batches(60):
        predicted = not run.needs_backward
        found.append(run.step(batch))
        if predicted and not run.needs_backward:
            sizes.append(state_bytes(optimizer))
    return found, sizes, run.finish(), [p.detach().clone() for p in model.parameters()]


def test_the_state_is_away_in_predict_phases_and_nothing_else_changes():
    stays, goes = trained({}), trained({"offload_optimizer": True})
    assert goes[2]["predicted_steps"] == stays[2]["predicted_steps"] >= 4
    assert np.array_equal(stays[0], goes[0], equal_nan=True)
    assert all(torch.equal(a, b) for a, b in zip(stays[3], goes[3], strict=True))
    assert min(stays[1]) > 0 and max(goes[1]) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_window_means_are_in_host_memory_and_nothing_else_changes(dtype):
    stays = trained({}, predictor="spectral", dtype=dtype)
    goes = trained({"history": "host"}, predictor="spectral", dtype=dtype)
    assert goes[2]["jumps"] == stays[2]["jumps"] >= 1
    assert np.array_equal(stays[0], goes[0], equal_nan=True)
    assert all(torch.equal(a, b) for a, b in zip(stays[3], goes[3], strict=True))


def test_a_tensor_and_its_host_copy_share_no_memory():
    adapter = made()
    given = (torch.arange(4.0), torch.ones(3, dtype=torch.bfloat16), torch.tensor([], dtype=torch.int8))
    kept = adapter.to_host(given)
    given[0].zero_()
    back = kept.back()
    back[0].add_(1.0)
    assert kept.dtypes == ("float32", "bfloat16", "int8") and kept.homes == ("cpu",) * 3
    assert kept.nbytes == 16 + 6
    assert [a.tolist() for a in kept.back()] == [[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0], []]
    assert [a.dtype for a in kept.numpy()] == [np.float32, np.float32, np.int8]


def test_the_adapter_offers_what_the_memory_capability_says():
    adapter = made()
    assert "memory" in adapter.capabilities and isinstance(adapter, MemoryAdapter)
    assert adapter.free_bytes() is None  # host memory, which the core knows


def test_the_peak_of_the_fullest_card_counts_from_the_reset(monkeypatch):
    """F90, with two cards that are not there; on the CPU nothing is said."""
    adapter = made()
    assert isinstance(adapter, PeakMemoryAdapter)
    adapter.reset_peak()
    assert adapter.peak_bytes() is None
    cards = [torch.device("cuda", place) for place in (0, 1)]
    used, most = dict.fromkeys(cards, 70), dict.fromkeys(cards, 900)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda card: most.update({card: used[card]}))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda card: most[card])
    adapter._cuda = cards
    adapter.reset_peak()
    assert adapter.peak_bytes() == 70
    most[cards[1]] = 300
    assert adapter.peak_bytes() == 300


class Checkpointed(nn.Module):
    def __init__(self, again):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 6))] * 4)
        self.head, self.again = nn.Linear(6, 3), again

    def forward(self, x):
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.again else block(x))
        return self.head(x)


def test_checkpointed_activations_keep_their_saving_and_change_no_bit():
    kept = {}
    for again in (False, True):
        model = Checkpointed(again)
        saved = 0

        def count(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), 0.1), losses)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            adapter.train_step(next(batches(1)))
        kept[again] = saved, trained({}, Checkpointed(again))
    assert kept[True][0] < 0.5 * kept[False][0]
    plain, again = kept[False][1], kept[True][1]
    assert np.array_equal(plain[0], again[0], equal_nan=True) and plain[2]["jumps"] == again[2]["jumps"] >= 1
    assert all(torch.equal(a, b) for a, b in zip(plain[3], again[3], strict=True))
