"""What `test_fsdp.py` runs on each process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoint_scenario import checkpoint
from rank_lab import Decisions, Lab, exchanges, squared_error, weights_digest
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hybridcore_torch import TorchAdapter

STEPS = 170


class Root(nn.Module):
    """A block of its own beside parameters of the root, which FSDP2 does not free after a forward pass."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.body = lab.model()
        self.scale = nn.Parameter(torch.ones(3, dtype=lab.dtype))
        self.shift = nn.Parameter(torch.full((1,), 0.1, dtype=lab.dtype))  # too short to be shared

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(x) * self.scale + self.shift


def sharded(lab: Lab) -> nn.Module:
    model = Root(lab)
    fully_shard(model.body)
    return fully_shard(model)


def whole(model: nn.Module) -> list[torch.Tensor]:
    """Whole parameters; every rank must ask."""
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


def everything(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    lab = Lab(rank, world_size)
    return {
        "layout": layout(lab),
        "verdicts": verdicts(Lab(rank, world_size, torch.float64)),
        "bad batches": bad_batches(lab),
        "writes": writes(Lab(rank, world_size, torch.float64)),
        "rollback": rollback(lab),
        "numbers": numbers(Lab(rank, world_size, torch.float64)),
        "predictors": predictors(lab),
        "checkpoint": checkpoint(lab, sharded, folder),
    }


def layout(lab: Lab) -> dict[str, Any]:
    model = sharded(lab)
    adapter = TorchAdapter(model, torch.optim.Adam(model.parameters()), squared_error)
    return {
        "local": adapter.layout.total,
        "shapes": [list(p.shape) for p in adapter.layout.params],
        "runs": [group.value for group, _, _ in adapter.layout.group_slices()],
        "copies": adapter.copies,
        "capabilities": sorted(adapter.capabilities),
        "snapshot": adapter.snapshot_nbytes(),
    }


def verdicts(lab: Lab) -> dict[str, Any]:
    model = sharded(lab)
    decisions = Decisions(model)
    hybrid = lab.hybrid(model, decisions)
    for index in range(STEPS):
        hybrid.step(lab.batch(index))
    summary = hybrid.finish()
    found = decisions.summary()
    return {
        "log": found["log"],
        "verdicts": found["verdicts"],
        "jumps": found["jumps"],
        "credit": summary["credit_steps"],
        "still sharded": all(isinstance(p, DTensor) for p in model.parameters()),
        "numbers": [p.double().tolist() for p in whole(model)],
    }


def bad_batches(lab: Lab) -> dict[str, Any]:
    model = sharded(lab)
    decisions = Decisions(model)
    hybrid = lab.hybrid(model, decisions)
    kept = []
    for index in range(STEPS):
        x, y = lab.batch(index)
        bad = index in (15, 70, 71, 150)
        if bad and lab.rank == 0:
            x = x.clone()
            x[0, 0] = float("inf") if index == 15 else float("nan")
        before = weights_digest(model)
        hybrid.step((x, y))
        if bad:
            kept.append(before == weights_digest(model))
    finite = all(bool(torch.isfinite(p.to_local()).all()) for p in model.parameters())  # type: ignore[attr-defined]
    return {"log": decisions.digest(), "skipped": hybrid.finish()["skipped"], "kept": kept, "finite": finite}


def writes(lab: Lab) -> dict[str, Any]:
    """Probes see every change of the shards at once, also right after another probe."""
    model = sharded(lab)
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squared_error)
    batch = lab.batch(7)
    plain = Root(lab)
    former = adapter.read_params()
    losses = {"start": adapter.probe_loss(batch).tolist()}
    adapter.apply_delta(tuple(torch.full_like(b, 0.25) for b in former))
    losses["moved"] = adapter.probe_loss(batch).tolist()
    with adapter.weights(former):
        losses["inside"] = adapter.probe_loss(batch).tolist()
    losses["outside"] = adapter.probe_loss(batch).tolist()
    shards = [Lab(r, lab.world_size, lab.dtype).batch(7) for r in range(lab.world_size)]
    everyone = tuple(torch.cat(parts) for parts in zip(*shards, strict=True))
    with torch.no_grad():
        wanted = {"start": squared_error(plain, everyone).tolist()}
        for param in plain.parameters():
            param += 0.25
        wanted["moved"] = squared_error(plain, everyone).tolist()
    return {"losses": losses, "wanted": wanted}


def rollback(lab: Lab) -> dict[str, Any]:
    """A snapshot comes back bit for bit, and into an optimizer that has no state yet."""
    model = sharded(lab)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    adapter = TorchAdapter(model, optimizer, squared_error)
    for index in range(3):
        adapter.train_step(lab.batch(index))
    snapshot, before = adapter.snapshot(), weights_digest(model)
    first = [adapter.train_step(lab.batch(index)).loss for index in range(3, 6)]
    after = weights_digest(model)
    adapter.restore(snapshot)
    back = weights_digest(model) == before
    again = [adapter.train_step(lab.batch(index)).loss for index in range(3, 6)]
    fresh = sharded(lab)
    other = TorchAdapter(fresh, torch.optim.Adam(fresh.parameters(), lr=0.01), squared_error)
    arrays, data = adapter.snapshot_state(snapshot)
    other.restore(other.snapshot_from_state(arrays, data))
    moved = [other.train_step(lab.batch(index)).loss for index in range(3, 6)]
    return {
        "back": back,
        "same": first == again == moved,
        "end": after == weights_digest(model) == weights_digest(fresh),
    }


def numbers(lab: Lab) -> dict[str, Any]:
    """Norms, moments and momentum rules that go over all shards."""
    model = sharded(lab)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    adapter = TorchAdapter(model, optimizer, squared_error, max_grad_norm=0.2)
    norms = [adapter.train_step(lab.batch(index)).grad_norm for index in range(4)]
    heavy = sharded(lab)
    momentum = TorchAdapter(heavy, torch.optim.SGD(heavy.parameters(), lr=0.05, momentum=0.9), squared_error)
    for index in range(4):
        momentum.train_step(lab.batch(index))
    momentum.after_jump(momentum.read_params())
    last = momentum.train_step(lab.batch(4))
    other = sharded(lab)
    fresh = TorchAdapter(other, torch.optim.Adam(other.parameters(), lr=0.01), squared_error)
    return {
        "exchanges": exchanges(fresh, lab),
        "norms": norms,
        "norm": last.grad_norm,
        "moments": adapter.moments(),
        "clipped": [p.tolist() for p in whole(model)],
        "scaled": [p.tolist() for p in whole(heavy)],
    }


def predictors(lab: Lab) -> dict[str, Any]:
    """Predictors and correctors that decide by inner products of weights."""
    found = {}
    for name in ("subspace-newton", "random"):
        model = sharded(lab)
        decisions = Decisions(model)
        hybrid = lab.hybrid(
            model,
            decisions,
            predictor={"name": name},
            controller={"name": "fixed"},
            correction={"name": "gains", "gains": {"rank": 1}},
        )
        for index in range(120):
            hybrid.step(lab.batch(index))
        found[name] = {"log": decisions.digest(), "jumps": decisions.jumps, "verdicts": decisions.verdicts}
    return found
