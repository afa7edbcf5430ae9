"""Bookkeeping per real step of a byte-level GPT: plain loop against the engine, with and without kernels."""

from __future__ import annotations

import itertools
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hybridcore.configfile import config_from_dict
from hybridcore.engine import Engine
from hybridcore.kernels import ChosenKernels, choose
from hybridcore.plugins import load_registry
from hybridcore_cupy import CupyKernels
from hybridcore_torch import TorchAdapter
from hybridcore_torch.models.transformer import Transformer

SHAPES = {
    "10M": {"width": 384, "depth": 6, "heads": 6, "context": 256, "rows": 64},
    "124M": {"width": 896, "depth": 13, "heads": 14, "context": 512, "rows": 32},
}


def corpus(rows: int, context: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of bytes of the standard library's source files."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = b"".join(f.read_bytes() for f in sorted(folder.glob("*.py"))[:120])
    data = torch.as_tensor(np.frombuffer(text, dtype=np.uint8).astype(np.int64), device="cuda")
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(16):
        starts = rng.integers(0, len(data) - context - 1, rows)
        block = torch.stack([data[s : s + context + 1] for s in starts.tolist()])
        batches.append((block[:, :-1].contiguous(), block[:, 1:].contiguous()))
    return batches


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    """Mean cross-entropy per sequence."""
    tokens, targets = batch
    logits = model(tokens)
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(dim=1)


def engine_step(adapter: TorchAdapter, kernels: ChosenKernels, predictor: str, **tables: Any) -> Any:
    """A step function of an engine, and the engine. Histories stay awake: the Full block never ends."""
    config = config_from_dict(
        {
            "history": {"memory_budget_mib": 40_000.0},
            "phases": {"warmup_steps": 0, "full_steps": 10**6},
            "predictor": {"name": predictor},
            "kernels": {"name": "reference"},
            **tables,
        }
    )
    registry = load_registry()
    controller = registry.get("controller", config.controller.name)
    engine = Engine(
        adapter,
        config,
        controller(controller.Config()),
        {predictor: registry.get("predictor", predictor)()},
        kernels=kernels,
    )
    return engine.step, engine


def measure(label: str, quick: bool, deadline: float) -> dict[str, Any]:
    shape = dict(SHAPES[label])
    rows = shape.pop("rows")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = Transformer(vocabulary=256, **shape).cuda()
    total = sum(p.numel() for p in model.parameters())
    compiled: Any = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    batches = corpus(rows, shape["context"])

    def plain(batch: Any) -> Any:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_fn(compiled, batch).mean()
        loss.backward()
        loss.item()
        optimizer.step()
        return loss

    adapter = TorchAdapter(compiled, optimizer, loss_fn, autocast=torch.bfloat16)
    bare = TorchAdapter(compiled, optimizer, loss_fn, autocast=torch.bfloat16, grad_norm=False)
    reference = ChosenKernels({})
    chosen = choose("auto", {"cupy": CupyKernels}, adapter)
    steps: dict[str, Callable[[Any], Any]] = {"plain": plain}
    engines: dict[str, Any] = {}
    for name, bridge, kernels, predictor, tables in (
        ("adapter only", adapter, None, "", {}),
        ("engine, reference", adapter, reference, "last-update", {}),
        ("engine, kernels", adapter, chosen, "last-update", {}),
        ("engine, kernels, no gradient norm", bare, chosen, "last-update", {}),
        ("drift, kernels", bare, chosen, "drift", {"controller": {"name": "fixed"}}),
    ):
        if kernels is None:
            steps[name] = bridge.train_step
        else:
            steps[name], engines[name] = engine_step(bridge, kernels, predictor, **tables)
    source = itertools.cycle(batches)
    count = 3 if quick else (20 if total < 5e7 else 6)

    def turn(step: Callable[[Any], Any]) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(count):
            step(next(source))
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / count

    started = time.monotonic()
    for step in steps.values():
        for _ in range(3):
            step(next(source))
    print(f"  compiled and warm in {time.monotonic() - started:.0f} s", flush=True)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn_index in range(2 if quick else 12):
        if time.monotonic() > deadline and turn_index > 3:
            break
        for name in names if turn_index % 2 == 0 else names[::-1]:
            taken[name].append(turn(steps[name]))
    torch.cuda.synchronize()
    result: dict[str, Any] = {"parameters": total, "tensors": len(list(model.parameters())), "arms": {}}
    print(
        f"{label}: {total / 1e6:.1f} M parameters in {result['tensors']} tensors, "
        f"batch {rows} x {shape['context']}"
    )
    for name, seconds in taken.items():
        ratios = np.asarray(seconds) / np.asarray(taken["plain"])
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        result["arms"][name] = {
            "ms": 1e3 * float(np.median(seconds)),
            "ratio": float(middle),
            "low": float(low),
            "high": float(high),
        }
        print(
            f"  {name:<36}{1e3 * np.median(seconds):8.2f} ms {middle:7.4f} ({low:.4f} to {high:.4f})",
            flush=True,
        )
    result["bookkeeping_us"] = bookkeeping(engines["engine, kernels"], adapter)
    print("  device microseconds per step:", {k: round(v) for k, v in result["bookkeeping_us"].items()})
    result["jumps"] = jumps(adapter, {"reference": reference, "kernels": chosen})
    print("  a proposal by `spectral` and its caps, ms:", result["jumps"], flush=True)
    return result


def bookkeeping(engine: Engine, adapter: TorchAdapter) -> dict[str, float]:
    """What the history does per real step, without the step: device time and host time."""

    def both() -> None:
        engine.history.before_step(adapter)
        engine.history.after_step(adapter)

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(3):
        both()
    torch.cuda.synchronize()
    torch.cuda._sleep(60_000_000)
    begin.record()
    started = time.perf_counter()
    for _ in range(20):
        both()
    host = time.perf_counter() - started
    end.record()
    torch.cuda.synchronize()
    return {"device": 1e3 * begin.elapsed_time(end) / 20, "host": 1e6 * host / 20}


def jumps(adapter: TorchAdapter, sets: dict[str, ChosenKernels]) -> dict[str, float]:
    """Milliseconds of what a trial computes on weights: Gram matrix, combination, norms per group."""
    from hybridcore.predictors.snapshots import differences

    base = adapter.read_params()
    xp, found = adapter.xp, {}
    means = [tuple(b * (1.0 + 0.01 * k) for b in base) for k in range(5)]
    for name, kernels in sets.items():
        taken = []
        for _ in range(5):
            torch.cuda.synchronize()
            started = time.perf_counter()
            steps = differences(means)
            kernels.gram(steps, xp)
            moved = kernels.combine(steps, [0.1, 0.2, 0.3, 0.4], xp)
            kernels.run_norms(moved, adapter.layout.group_slices(), xp)
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
        found[name] = round(1e3 * sorted(taken)[2], 3)
    return found


def run(deadline: float, quick: bool, failures: list[Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for label in list(SHAPES)[: 1 if quick else 2]:
        if time.monotonic() > deadline:
            print(f"{label}: no time left")
            break
        try:
            result[label] = measure(label, quick, deadline)
        except Exception:
            failures.append({"where": f"training {label}", "traceback": traceback.format_exc()})
        torch.cuda.empty_cache()
    return result
