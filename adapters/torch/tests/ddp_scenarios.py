"""What `test_ddp.py` runs on each process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from checkpoint_scenario import checkpoint
from rank_lab import Decisions, Lab, error_of, exchanges, keep, squared_error, weights_digest
from torch import distributed, nn

from hybridcore_torch import TorchAdapter

STEPS = 260


def wrapped(lab: Lab) -> nn.parallel.DistributedDataParallel:
    return nn.parallel.DistributedDataParallel(lab.model())


def count_gradients(model: nn.parallel.DistributedDataParallel) -> list[int]:
    """Exchanges of gradients, one entry each."""
    seen: list[int] = []

    def exchange(state, bucket):  # type: ignore[no-untyped-def]  # PyTorch reads annotations as they are
        seen.append(1)
        size = distributed.get_world_size()
        work = distributed.all_reduce(bucket.buffer().div_(size), async_op=True).get_future()
        return work.then(lambda future: future.value()[0])

    model.register_comm_hook(None, exchange)
    return seen


def everything(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    lab = Lab(rank, world_size)
    found = {
        "verdicts": verdicts(Lab(rank, world_size, torch.float64)),
        "bad batches": bad_batches(lab),
        "clock": clock(lab),
        "bandit": bandit(lab),
        "memory": memory(lab),
        "rows": rows(lab),
        "own loop": own_loop(lab),
        "line search": line_search(Lab(rank, world_size, torch.float64)),
        "alone": alone(lab),
        "unlike": unlike(lab),
        "drifted": drifted(lab),
        "checkpoint": checkpoint(Lab(rank, world_size), wrapped, folder),
    }
    death(Lab(rank, world_size), found, folder)


def verdicts(lab: Lab) -> dict[str, Any]:
    model = wrapped(lab)
    gradients, decisions = count_gradients(model), Decisions(model)
    hybrid = lab.hybrid(model, decisions)
    losses = [hybrid.step(lab.batch(index)) for index in range(STEPS)]
    summary = hybrid.finish()
    return {
        **decisions.summary(),
        "phases": decisions.phases,
        "gains": decisions.gains,
        "losses": losses,
        "gradients": len(gradients),
        "backward": summary["backward_passes"],
        "numbers": [p.double().tolist() for p in model.module.parameters()],
        "credit": summary["credit_steps"],
        "exchanges": hybrid.adapter.exchanges,
    }


def bad_batches(lab: Lab) -> dict[str, Any]:
    """One rank meets NaN in a batch, then a loss that is NaN while all gradients are finite."""
    model = wrapped(lab)
    decisions = Decisions(model)
    hybrid = lab.hybrid(model, decisions)
    kept = []
    for index in range(STEPS):
        x, y = lab.batch(index)
        last = lab.rank == lab.world_size - 1
        if last and index in (15, 70, 71, 150):
            x = x.clone()
            x[0, 0] = float("nan")
        before = weights_digest(model)
        hybrid.step((x, y))
        if index in (15, 70, 71, 150):
            kept.append(before == weights_digest(model))
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return {**decisions.summary(), "skipped": hybrid.finish()["skipped"], "kept": kept, "finite": finite}


def hidden_nan(lab: Lab) -> dict[str, Any]:
    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        losses = squared_error(model, batch[:2])
        return losses + batch[2]  # a constant: no gradient knows of it

    model = wrapped(lab)
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn)
    bad = float("nan") if lab.rank == 0 else 0.0
    before = weights_digest(model)
    result = adapter.train_step((*lab.batch(0), bad))
    return {"skipped": result.skipped, "same": before == weights_digest(model)}


def clock(lab: Lab) -> dict[str, Any]:
    """One rank is slow, and seconds count."""
    model = wrapped(lab)
    decisions = Decisions(model)
    hybrid = lab.hybrid(model, decisions, budget={"count_seconds": True, "share": 0.02, "grace_steps": 20.0})
    for index in range(120):
        if lab.rank:
            time.sleep(0.0005 * (index % 3))
        hybrid.step(lab.batch(index))
    return {**decisions.summary(), "hidden": hidden_nan(lab), "seconds": hybrid.engine.budget.total_seconds}


def bandit(lab: Lab) -> dict[str, Any]:
    model = wrapped(lab)
    decisions = Decisions(model)
    tables = {
        "controller": {"name": "linucb", "linucb": {"reward": "seconds"}},
        "correction": {"name": "gains"},
    }
    hybrid = lab.hybrid(model, decisions, **tables)
    for index in range(STEPS):
        if lab.rank:
            time.sleep(0.0002)
        hybrid.step(lab.batch(index))
    return decisions.summary()


def memory(lab: Lab) -> dict[str, Any]:
    budget = 0.1 if lab.rank == 0 else 0.012
    hybrid = lab.hybrid(wrapped(lab), history={"memory_budget_mib": budget, "windows": 40})
    history = hybrid.engine.history
    none = error_of(
        lambda: lab.hybrid(wrapped(lab), history={"memory_budget_mib": 1.0 if lab.rank == 0 else 1e-4})
    )
    return {"windows": history.windows, "budget": history.budget_bytes, "none": none}


def rows(lab: Lab) -> dict[str, Any]:
    """Ranks with unlike numbers of probe examples."""
    model = wrapped(lab)
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squared_error)
    x, y = lab.batch(3, 24, split=False)
    bounds = np.linspace(0, 24, lab.world_size + 1) ** 2 // 24
    part = slice(int(bounds[lab.rank]), int(bounds[lab.rank + 1]))
    got = adapter.probe_loss((x[part], y[part]))
    with torch.no_grad():
        wanted = squared_error(model.module, (x, y)).double().numpy()
    return {
        "got": got.tolist(),
        "wanted": wanted.tolist(),
        "sizes": [part.start, part.stop],
        "exchanges": exchanges(adapter, lab),
    }


def own_loop(lab: Lab) -> dict[str, Any]:
    model = wrapped(lab)
    decisions = Decisions(model)
    hybrid = lab.hybrid(model, decisions)
    optimizer = hybrid.adapter.optimizer
    for index in range(STEPS):
        if hybrid.needs_backward:
            optimizer.zero_grad()
            loss = squared_error(model, lab.batch(index)).mean()
            loss.backward()
            optimizer.step()
            hybrid.advance(loss)
        else:
            hybrid.advance()
    return decisions.summary()


def line_search(lab: Lab) -> dict[str, Any]:
    model = wrapped(lab)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=6, line_search_fn="strong_wolfe")
    adapter = TorchAdapter(model, optimizer, squared_error)
    results = [adapter.train_step(lab.batch(index, 48)) for index in range(4)]
    return {
        "losses": [r.loss for r in results],
        "evaluations": [r.evaluations for r in results],
        "numbers": [p.tolist() for p in model.module.parameters()],
    }


def alone(lab: Lab) -> dict[str, Any]:
    """Models that are not data-parallel are trained alone, though a process group exists."""
    model = lab.model()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squared_error)
    together = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squared_error, ranks=True)
    mine = float(lab.rank)
    return {"alone": adapter.mean_scalar(mine) == mine, "together": together.mean_scalar(mine)}


def unlike(lab: Lab) -> dict[str, Any]:
    seeds = error_of(lambda: lab.hybrid(wrapped(lab), run={"seed": lab.rank}))
    probes = lab.probes()[: 1 + lab.rank % 2]
    lab.probes = lambda: probes  # type: ignore[method-assign]
    return {"configuration": seeds, "probes": error_of(lambda: lab.hybrid(wrapped(lab)))}


def drifted(lab: Lab) -> list[str]:
    fresh = Lab(lab.rank, lab.world_size)
    model = wrapped(fresh)
    hybrid = fresh.hybrid(model)

    def train() -> None:
        for index in range(STEPS):
            if index == 60 and lab.rank == 0:
                with torch.no_grad():
                    model.module[0].weight.mul_(2.0)
            hybrid.step(fresh.batch(index))

    return error_of(train)


def death(lab: Lab, found: dict[str, Any], folder: Path) -> NoReturn:
    """The last rank dies in the middle of a run, after saying what it found so far."""
    hybrid = lab.hybrid(wrapped(lab))

    def train() -> None:
        for index in range(STEPS):
            if index == 40 and lab.rank == lab.world_size - 1:
                keep(found, "everything", lab.rank, folder)
                os._exit(9)
            hybrid.step(lab.batch(index))

    began = time.monotonic()
    error = error_of(train)
    told = {**found, "death": error, "seconds": time.monotonic() - began}
    keep(told, "everything", lab.rank, folder)
    os._exit(0)  # the group is broken: leaving it in order would wait for the dead


def many(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    return verdicts(Lab(rank, world_size, torch.float64))
