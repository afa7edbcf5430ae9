"""Do the processes of one run ever decide unlike, do their weights ever differ, and what does it cost? (F71)

    python benchmarks/ranks.py [--processes 2 4] [--steps 10000] [--device cuda] [--json FILE]

Decisions: every process trains in DistributedDataParallel, and sharded by FSDP2, and writes down each
decision of its engine with all its numbers, and a digest of all weights right after each jump; then the lines
of all processes are compared.

One process: the same training in float64 with whole batches tells whether phases, verdicts and losses are
those of one process. In float32, rounding grows with every jump, until a close decision falls otherwise.

Traffic: PyTorch's profiler counts the collectives inside of real steps, predictions and changes of weights.

Bookkeeping: on the same processes, a plain data-parallel loop and one with the engine, in which every jump is
refused, take turns in the order A B B A; the median of the paired ratios is shown. Once with the default SGD,
once with the fused one, whose updates need not wait until their numbers are known.

On the CPU the processes use gloo, with ``--device cuda`` NCCL and one GPU each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from rank_work import Plan, work

Found = dict[str, Any]


def start(plan: Plan, ranks: int) -> list[Found]:
    """What each of so many processes found."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, __file__, "--plan", json.dumps(attrs.asdict(plan)), "--out", out]
        words += ["--of", str(ranks), "--rank"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        workers = [subprocess.Popen([*words, str(r)], env=environment) for r in range(ranks)]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            raise SystemExit("a process failed; its error is above")
        return [json.loads((Path(out) / f"rank-{r}.json").read_text()) for r in range(ranks)]


def differing(rows: list[list[Any]]) -> int:
    """Places at which not all rows hold the same."""
    longest = max(map(len, rows))
    return sum(len({row[i] if i < len(row) else None for row in rows}) > 1 for i in range(longest))


def furthest(some: list[float], others: list[float]) -> float:
    """Largest relative difference; infinite where one list is longer, or only one number is NaN."""
    if len(some) != len(others):
        return float("inf")
    a, b = np.array(some, dtype=float), np.array(others, dtype=float)
    if not a.size or (np.isnan(a) != np.isnan(b)).any():
        return 0.0 if not a.size else float("inf")
    scale = np.maximum(np.abs(a), np.abs(b)) + 1e-12
    return float(np.nanmax(np.abs(a - b) / scale, initial=0.0))


def compare_ranks(found: list[Found], how: str) -> Found:
    """What differs between the processes."""
    runs = [each[how] for each in found]
    row = {
        "events": len(runs[0]["lines"]),
        "jumps": runs[0]["jumps"],
        "verdicts": len(runs[0]["verdicts"]),
        "decisions that differ": differing([run["lines"] for run in runs]),
    }
    if how == "ddp":  # with FSDP2 each process holds weights of its own
        row["weights that differ after a jump"] = differing([run["after"] for run in runs])
    return row | {key: runs[0][key] for key in ("exchanges_per_step", "ms_per_step")}


def compare_with_one(many: Found, one: Found) -> Found:
    """What differs from one process with the whole batches, in float64."""
    kept = [[verdict[0] for verdict in run["verdicts"]] for run in (many, one)]
    return {
        "jumps": one["jumps"],
        "verdicts": len(kept[1]),
        "verdicts that differ": differing(kept),
        "phases that differ": differing([[repr(p) for p in run["phases"]] for run in (many, one)]),
        "gains, relative difference": furthest(*([v[1] for v in r["verdicts"]] for r in (many, one))),
        "losses, relative difference": furthest(many["losses"], one["losses"]),
    }


def report(plan: Plan, ranks: int, found: list[Found]) -> Found:
    """All numbers of one count of processes."""
    ways = ["ddp", "fsdp"] if plan.fsdp else ["ddp"]
    row: Found = {"processes": ranks, "steps": plan.steps}
    row |= {key: found[0][key] for key in ("bookkeeping", "bookkeeping, fused")}
    for how in ways:
        row[how] = compare_ranks(found, how)
        row[f"{how} against one process"] = compare_with_one(found[0][f"{how} in float64"], found[0]["alone"])
        row[f"{how} traffic"] = found[0][f"{how} traffic"]
    return row


def show(value: Any, indent: int = 0) -> None:
    """Nested numbers as an indented table."""
    for key, item in value.items():
        if isinstance(item, dict):
            print(" " * indent + key)
            show(item, indent + 2)
        else:
            text = f"{item:.4g}" if isinstance(item, float) else item
            print(f"{' ' * indent + key:44} {text}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, help="compared between processes; 10000, on GPUs 2000")
    parser.add_argument("--alone", type=int, default=400, help="steps compared with one process")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--width", type=int, help="of the network that is timed; 512, on GPUs 2200")
    parser.add_argument("--batch", type=int, help="its examples per process; 128, on GPUs 8192")
    parser.add_argument("--no-fsdp", action="store_true", help="leave FSDP2 out")
    parser.add_argument("--json", help="write the numbers to this file")
    for hidden in ("--rank", "--of"):
        parser.add_argument(hidden, type=int, default=None, help=argparse.SUPPRESS)
    for hidden in ("--out", "--plan"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        work(Plan(**json.loads(options.plan)), options.rank, options.of, Path(options.out))
        return
    cuda = options.device == "cuda"
    plan = Plan(
        device=options.device,
        steps=options.steps or (2000 if cuda else 10_000),
        alone=options.alone,
        width=options.width or (2200 if cuda else 512),
        batch=options.batch or (8192 if cuda else 128),
        fsdp=not options.no_fsdp,
    )
    results = []
    for ranks in options.processes:
        results.append(report(plan, ranks, start(plan, ranks)))
        show(results[-1])
        print(flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
