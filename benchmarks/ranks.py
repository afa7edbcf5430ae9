"""Many processes: do they ever decide differently, do their weights ever differ, and what does it cost? (F71)

    python benchmarks/ranks.py [--processes 2 4] [--steps 10000] [--device cuda] [--json FILE]

Decisions: every process trains in DistributedDataParallel and writes down each decision of its engine with
all its numbers, and a digest of all weights right after each jump; then the lines of all processes are
compared. One process that trains on the whole batches tells whether the verdicts are the same.

Bookkeeping: on the same processes, a plain data-parallel loop and one with the engine, in which every jump is
refused, take turns in the order A B B A; the median of the paired ratios is shown.

On the CPU the processes use gloo, with ``--device cuda`` NCCL and one GPU each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from hybridcore.config import HybridConfig
from hybridcore.configfile import config_from_dict
from hybridcore_torch import hybridize

INPUTS, CLASSES = 32, 10
TURN, ROUNDS = 12, 12


def task(
    device: torch.device, rank: int, ranks: int
) -> Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]:
    """``batch(number, size)``: this process's rows of a batch of a noisy synthetic classification."""
    teacher = torch.randn(INPUTS, CLASSES, generator=torch.Generator().manual_seed(1))

    def batch(number: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(size, INPUTS, generator=generator)
        noise = torch.randn(size, CLASSES, generator=generator)
        y = (x @ teacher + 2.0 * noise).argmax(1)
        return x[rank::ranks].to(device), y[rank::ranks].to(device)

    return batch


def losses(model: nn.Module, batch: Any) -> torch.Tensor:
    """Per-example losses, shape (n,)."""
    found: torch.Tensor = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return found


def network(width: int, device: torch.device, ranks: int) -> nn.Module:
    """The same weights on every process."""
    torch.manual_seed(0)
    sizes = [INPUTS, width, width, CLASSES]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
    model = nn.Sequential(*layers).to(device)
    return nn.parallel.DistributedDataParallel(model) if ranks > 1 else model


def weights_of(model: nn.Module) -> bytes:
    """All weights, as bytes."""
    return b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())


def decisions(steps: int, device: torch.device, rank: int, ranks: int) -> dict[str, Any]:
    """Train and write down what was decided."""
    lines: list[str] = []
    after: list[str] = []
    verdicts: list[bool] = []
    model = network(32, device, ranks)

    def listen(event: Any, payload: Any) -> None:
        told = {key: value for key, value in payload.items() if key != "elapsed"}
        lines.append(hashlib.sha256(f"{event} {told!r}".encode()).hexdigest()[:12])
        if str(event) == "jump":
            after.append(hashlib.sha256(weights_of(model)).hexdigest()[:12])
        elif str(event) == "verdict":
            verdicts.append(bool(payload["kept"]))

    batch = task(device, rank, ranks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    # Jumps early and often, also where they do not pay: each is an occasion to differ.
    tables: dict[str, Any] = {
        "phases": {"warmup_steps": 20, "full_steps": 10},
        "budget": {"share": 0.5, "grace_steps": 60.0, "backoff_steps": 5, "max_backoff_steps": 40},
    }
    config = config_from_dict(tables)
    probe = [batch(10**7 + i, 128) for i in range(2)]
    hybrid = hybridize(model, optimizer, config, loss_fn=losses, probe=probe, events=[listen])
    started = time.perf_counter()
    for number in range(steps):
        hybrid.step(batch(number))
    summary = hybrid.finish()
    return {
        "lines": lines,
        "after": after,
        "verdicts": verdicts,
        "loss": float(hybrid.adapter.probe_loss(probe[0]).mean()),
        "seconds": time.perf_counter() - started,
        "jumps": summary["jumps"],
        "exchanges": hybrid.adapter.exchanges,
    }


def bookkeeping(width: int, size: int, device: torch.device, rank: int, ranks: int) -> dict[str, Any]:
    """Paired times of a plain loop and of one with the engine."""
    batch = task(device, rank, ranks)
    batches = [batch(i, size * ranks) for i in range(TURN)]
    plain = network(width, device, ranks)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9)

    def step(one: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = losses(plain, one).mean()
        loss.backward()
        optimizer.step()
        loss.item()

    model = network(width, device, ranks)
    other = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    config: HybridConfig = config_from_dict({"predictor": {"name": "none"}})
    hybrid = hybridize(model, other, config, loss_fn=losses, probe=[batch(10**7, 64)])

    def turn(action: Callable[[Any], object]) -> float:
        distributed.barrier()
        started = time.perf_counter()
        for one in batches:
            action(one)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    for action in (step, hybrid.step) * 3:
        turn(action)
    ratios, milliseconds = [], []
    for _ in range(ROUNDS):
        a, b, c, d = (turn(action) for action in (step, hybrid.step, hybrid.step, step))
        ratios.append((b + c) / (a + d))
        milliseconds.append(500.0 * (a + d) / TURN)
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {"ratio": middle, "low": low, "high": high, "plain_ms": float(np.median(milliseconds))}


def work(options: argparse.Namespace) -> None:
    """One process."""
    torch.set_num_threads(1)
    rank, ranks = options.rank, options.of
    device = torch.device("cuda", rank) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    found: dict[str, Any] = {}
    if ranks > 1:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{options.out}/rendezvous",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(minutes=5),
        )
        found["bookkeeping"] = bookkeeping(options.width, options.batch, device, rank, ranks)
    found |= decisions(options.steps, device, rank, ranks)
    (Path(options.out) / f"rank-{rank}.json").write_text(json.dumps(found))
    if ranks > 1:
        distributed.destroy_process_group()


def start(options: argparse.Namespace, ranks: int) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, __file__, "--device", options.device, "--steps", str(options.steps)]
        words += [
            "--width",
            str(options.width),
            "--batch",
            str(options.batch),
            "--of",
            str(ranks),
            "--out",
            out,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        workers = [subprocess.Popen([*words, "--rank", str(r)], env=environment) for r in range(ranks)]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            raise SystemExit("a process failed; its error is above")
        return [json.loads((Path(out) / f"rank-{r}.json").read_text()) for r in range(ranks)]


def differing(rows: list[list[Any]]) -> int:
    """Places at which not all rows hold the same."""
    longest = max(map(len, rows))
    return sum(len({row[i] if i < len(row) else None for row in rows}) > 1 for i in range(longest))


def agreeing(one: list[bool], other: list[bool]) -> int:
    """How many verdicts are the same from the start, until the first that is not."""
    pairs = list(zip(one, other, strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--width", type=int, default=1024, help="of the network that is timed")
    parser.add_argument("--batch", type=int, default=256, help="its examples per process")
    parser.add_argument("--json", help="write the numbers to this file")
    for hidden in ("--rank", "--of"):
        parser.add_argument(hidden, type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        work(options)
        return
    (alone,) = start(options, 1)
    results = []
    for ranks in options.processes:
        found = start(options, ranks)
        first = found[0]
        row = {
            "processes": ranks,
            "steps": options.steps,
            "events": len(first["lines"]),
            "jumps": first["jumps"],
            "decisions_that_differ": differing([f["lines"] for f in found]),
            "weights_that_differ_after_a_jump": differing([f["after"] for f in found]),
            "verdicts": len(first["verdicts"]),
            "verdicts_as_alone": int(
                sum(a == b for a, b in zip(first["verdicts"], alone["verdicts"], strict=False))
            ),
            "verdicts_alone": len(alone["verdicts"]),
            "loss": first["loss"],
            "loss_alone": alone["loss"],
            "exchanges_per_step": first["exchanges"] / options.steps,
            "ms_per_step": 1e3 * first["seconds"] / options.steps,
            "bookkeeping": first["bookkeeping"],
        }
        results.append(row)
        for key, value in row.items():
            print(f"{key:34} {value}")
        print(flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
