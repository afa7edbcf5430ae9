"""What each process of `benchmarks/ranks.py` does (F71)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from rank_traffic import traffic
from torch import distributed, nn

from hybridcore.config import HybridConfig
from hybridcore.configfile import config_from_dict
from hybridcore_torch import Hybrid, hybridize

__all__ = ["Plan", "work"]

INPUTS, CLASSES = 32, 10
TURN, ROUNDS = 12, 12
JUMPS, MOST = 5, 300
"""Jumps whose traffic is looked at after the steps that are compared, and most steps until then."""


@attrs.frozen
class Plan:
    """What to do; the same on every process.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        steps: Real steps in which every decision is compared.
        alone: Real steps in which the processes are compared with one that has the whole batches.
        width: Width of the network that is timed.
        batch: Its examples per process and step.
        fsdp: Whether to shard the parameters too.
    """

    device: str
    steps: int
    alone: int
    width: int
    batch: int
    fsdp: bool


class Task:
    """This process's rows of a noisy synthetic classification, and networks for it."""

    def __init__(self, device: torch.device, dtype: torch.dtype, rank: int = 0, ranks: int = 1) -> None:
        self.device, self.dtype, self.rank, self.ranks = device, dtype, rank, ranks
        self._teacher = torch.randn(INPUTS, CLASSES, generator=torch.Generator().manual_seed(1))

    def batch(self, number: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of this process in the global batch of that number."""
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(size, INPUTS, generator=generator)
        noise = torch.randn(size, CLASSES, generator=generator)
        y = (x @ self._teacher + 2.0 * noise).argmax(1)
        part = slice(self.rank, None, self.ranks)
        return x[part].to(self.device, self.dtype), y[part].to(self.device)

    def network(self, width: int, how: str) -> nn.Module:
        """The same weights on every process; `how` is ``"alone"``, ``"ddp"`` or ``"fsdp"``."""
        torch.manual_seed(0)
        sizes = [INPUTS, width, width, width, CLASSES]
        layers: list[nn.Module] = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
        model: nn.Module = nn.Sequential(*layers[:-1]).to(self.device, self.dtype)
        if how == "ddp":
            return nn.parallel.DistributedDataParallel(model)
        if how == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for layer in model.children():
                if isinstance(layer, nn.Linear):
                    fully_shard(layer)
            return fully_shard(model)
        return model


def losses(model: nn.Module, batch: Any) -> torch.Tensor:
    """Per-example losses, shape (n,)."""
    found: torch.Tensor = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return found


def digest(model: nn.Module) -> str:
    """Digest of all weights that this process holds, bit for bit."""
    parts = (getattr(p, "_local_tensor", p).detach().cpu().numpy().tobytes() for p in model.parameters())
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


class Run:
    """One training with early and frequent jumps, and all that was decided in it."""

    def __init__(self, task: Task, how: str) -> None:
        self.task, self.model = task, task.network(32, how)
        self.lines: list[str] = []
        self.after: list[str] = []
        self.phases: list[list[Any]] = []
        self.verdicts: list[list[Any]] = []
        self.losses: list[float] = []
        # Jumps early and often, also where they do not pay: each is an occasion to differ.
        tables: dict[str, Any] = {
            "phases": {"warmup_steps": 20, "full_steps": 10},
            "budget": {"share": 0.5, "grace_steps": 60.0, "backoff_steps": 5, "max_backoff_steps": 40},
        }
        self.hybrid: Hybrid = hybridize(
            self.model,
            torch.optim.SGD(self.model.parameters(), lr=0.005, momentum=0.9),
            config_from_dict(tables),
            loss_fn=losses,
            probe=[task.batch(10**7 + i, 128) for i in range(2)],
            events=[self._listen],
        )

    def _listen(self, event: Any, payload: Any) -> None:
        told = {key: value for key, value in payload.items() if key != "elapsed"}
        self.lines.append(hashlib.sha256(f"{event} {told!r}".encode()).hexdigest()[:12])
        if str(event) == "jump":
            self.after.append(digest(self.model))
        elif str(event) == "verdict":
            self.verdicts.append([bool(payload["kept"]), float(payload["gain"])])
        elif str(event) == "phase-start":
            self.phases.append([payload["step"], payload["phase"], payload["length"]])

    def step(self, number: int) -> None:
        """One real step, with the jump that may follow."""
        self.losses.append(self.hybrid.step(self.task.batch(number)))

    def train(self, steps: int) -> dict[str, Any]:
        """So many steps, and what came of them."""
        started = time.perf_counter()
        for number in range(steps):
            self.step(number)
        return {
            "lines": self.lines,
            "after": list(self.after),
            "phases": list(self.phases),
            "verdicts": list(self.verdicts),
            "losses": list(self.losses),
            "jumps": self.hybrid.engine.counts.jumps,
            "ms_per_step": 1e3 * (time.perf_counter() - started) / steps,
            "exchanges_per_step": self.hybrid.adapter.exchanges / steps,
        }


def bookkeeping(plan: Plan, task: Task, fused: bool) -> dict[str, Any]:
    """Paired times of a plain data-parallel loop and of one with the engine, whose jumps are all refused.

    Args:
        plan: Sizes.
        task: Batches and networks.
        fused: Whether both take PyTorch's fused SGD, which can be told to leave an update out.
    """
    batches = [task.batch(i, plan.batch * task.ranks) for i in range(TURN)]
    plain = task.network(plan.width, "ddp")

    def rule(network: nn.Module) -> torch.optim.SGD:
        return torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=fused or None)

    optimizer = rule(plain)

    def step(one: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = losses(plain, one).mean()
        loss.backward()
        optimizer.step()
        loss.item()

    model = task.network(plan.width, "ddp")
    config: HybridConfig = config_from_dict({"predictor": {"name": "none"}})
    hybrid = hybridize(model, rule(model), config, loss_fn=losses, probe=[task.batch(10**7, 64)])

    def turn(action: Callable[[Any], object]) -> float:
        hybrid.adapter.synchronize()
        distributed.barrier()
        started = time.perf_counter()
        for one in batches:
            action(one)
        hybrid.adapter.synchronize()
        return time.perf_counter() - started

    for action in (step, hybrid.step) * 3:
        turn(action)
    milliseconds = []

    def rounds() -> dict[str, float]:
        ratios = []
        for _ in range(ROUNDS):
            a, b, c, d = (turn(action) for action in (step, hybrid.step, hybrid.step, step))
            ratios.append((b + c) / (a + d))
            milliseconds.append(500.0 * (a + d) / TURN)
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        return {"ratio": float(middle), "low": float(low), "high": float(high)}

    first = rounds()  # the first steps are watched one by one
    return {
        **first,
        **{f"{key}, settled": value for key, value in rounds().items()},
        "plain_ms": float(np.median(milliseconds)),
        "weights": sum(p.numel() for p in model.parameters()),
        "jumps": hybrid.finish()["jumps"],
    }


def work(plan: Plan, rank: int, ranks: int, out: Path) -> None:
    """One process, from rendezvous to result."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if plan.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{out}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(minutes=10),
    )
    timed = Task(device, torch.float32, rank, ranks)
    found: dict[str, Any] = {"bookkeeping": bookkeeping(plan, timed, False)}
    found["bookkeeping, fused"] = bookkeeping(plan, timed, True)
    ways = ["ddp", "fsdp"] if plan.fsdp else ["ddp"]
    for how in ways:
        found[how] = Run(Task(device, torch.float32, rank, ranks), how).train(plan.steps)
        run = Run(Task(device, torch.float64, rank, ranks), how)
        found[f"{how} in float64"] = run.train(plan.alone)
        found[f"{how} traffic"] = traffic(run.hybrid, run.step, plan.alone, JUMPS, MOST)
    if rank == 0:
        found["alone"] = Run(Task(device, torch.float64), "alone").train(plan.alone)
    (out / f"rank-{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()
