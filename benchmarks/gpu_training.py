"""Bookkeeping per real step of a byte-level GPT: plain loop against the engine, with and without kernels."""

from __future__ import annotations

import itertools
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hybridcore.configfile import config_from_dict
from hybridcore.engine import Engine
from hybridcore.kernels import ChosenKernels, choose
from hybridcore.plugins import load_registry
from hybridcore.protocols import StepResult
from hybridcore_cupy import CupyKernels
from hybridcore_torch import TorchAdapter
from hybridcore_torch.models.transformer import Transformer

SHAPES = {
    "10M": {"width": 384, "depth": 6, "heads": 6, "context": 256, "rows": 256},
    "124M": {"width": 896, "depth": 13, "heads": 14, "context": 512, "rows": 32},
}


DEVICE = "cuda"

SKIPPED = 1000
"""Steps that an engine is put ahead by between its first 200 steps and the settled state."""


def corpus(rows: int, context: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of bytes of the standard library's source files."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = b"".join(f.read_bytes() for f in sorted(folder.glob("*.py"))[:120])
    data = torch.as_tensor(np.frombuffer(text, dtype=np.uint8).astype(np.int64), device=DEVICE)
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


def build_engine(adapter: TorchAdapter, kernels: ChosenKernels) -> Engine:
    """An engine with the default controller and phases, whose predictor `none` refuses every jump."""
    config = config_from_dict({"history": {"memory_budget_mib": 40_000.0}, "predictor": {"name": "none"}})
    registry = load_registry()
    controller = registry.get("controller", config.controller.name)
    predictor = registry.get("predictor", "none")()
    return Engine(adapter, config, controller(controller.Config()), {"none": predictor}, kernels=kernels)


def go_ahead(engine: Engine) -> None:
    """Put an engine where it is after 1,000 steps more: the reach is sampled every 50 steps.

    The next good state is taken 25 steps later, so that 100 steps have one, as in a long run.
    """
    engine.counts.real_steps += SKIPPED
    assert engine.reach is not None
    engine.reach.load_state_dict({**engine.reach.state_dict(), "counted": engine.counts.real_steps})
    engine.recovery.states.next_at = engine.counts.real_steps + 25


def rounds(
    steps: dict[str, Callable[[Any], Any]], source: Iterator[Any], count: int, turns: int, deadline: float
) -> dict[str, list[float]]:
    """Seconds per step of each arm, in turns of `count` steps, there and back."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(turns):
        if time.monotonic() > deadline and index > 1:
            break
        for name in list(steps) if index % 2 == 0 else list(steps)[::-1]:
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(count):
                steps[name](next(source))
            torch.cuda.synchronize()
            taken[name].append((time.perf_counter() - started) / count)
    return taken


def show(title: str, taken: dict[str, list[float]]) -> dict[str, Any]:
    """Time of each arm over the plain loop's: of all turns together, and of pairs of turns."""
    arms = {}
    for name, seconds in taken.items():
        ratios = np.asarray(seconds) / np.asarray(taken["plain"])
        low, middle, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
        whole = sum(seconds) / sum(taken["plain"])
        arms[name] = {
            "ms": 1e3 * float(np.mean(seconds)),
            "ratio": whole,
            "median": middle,
            "low": low,
            "high": high,
        }
        print(
            f"  {title:<16}{name:<20}{1e3 * np.mean(seconds):8.2f} ms {whole:7.4f}"
            f"   turns {middle:.4f} ({low:.4f} to {high:.4f})",
            flush=True,
        )
    return arms


def measure(label: str, quick: bool, deadline: float) -> dict[str, Any]:
    shape = dict(SHAPES[label])
    rows = shape.pop("rows")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = Transformer(vocabulary=256, **shape).to(DEVICE)
    total = sum(p.numel() for p in model.parameters())
    compiled: Any = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def plain(batch: Any) -> Any:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = loss_fn(compiled, batch).mean()
        loss.backward()
        loss.item()
        optimizer.step()
        return loss

    adapter = TorchAdapter(compiled, optimizer, loss_fn, autocast=torch.bfloat16)
    sets = {"reference": ChosenKernels({}), "kernels": choose("auto", {"cupy": CupyKernels}, adapter)}
    source = itertools.cycle(corpus(rows, shape["context"]))
    print(
        f"{label}: {total / 1e6:.1f} M parameters in {len(list(model.parameters()))} tensors, "
        f"batch {rows} x {shape['context']}; kernels for "
        + ", ".join(c.operation for c in sets["kernels"].choices if c.name != "reference"),
        flush=True,
    )
    started = time.monotonic()
    for _ in range(5):
        plain(next(source)), adapter.train_step(next(source))
    print(f"  compiled and warm in {time.monotonic() - started:.0f} s", flush=True)
    result: dict[str, Any] = {
        "parameters": total,
        "tensors": len(list(model.parameters())),
        "batch": [rows, shape["context"]],
        "kernels": sets["kernels"].summary(),
        "alone": {name: alone(adapter, kernels, quick) for name, kernels in sets.items()},
    }
    engines = {f"engine, {name}": build_engine(adapter, kernels) for name, kernels in sets.items()}
    steps = {"plain": plain, "adapter only": adapter.train_step, **{n: e.step for n, e in engines.items()}}
    first = rounds(steps, source, 5, 4 if quick else 10, deadline)
    result["steps 1 to 50"] = show("steps 1 to 50", first)
    then = rounds(steps, source, 10, 2 if quick else 15, deadline)
    result["steps 51 to 200"] = show("steps 51 to 200", then)
    early = {n: [float(np.mean(first[n])), *[float(np.mean(then[n]))] * 3] for n in steps}
    result["first 200 steps"] = show("first 200 steps", early)
    for engine in engines.values():
        go_ahead(engine)
    settled = rounds(steps, source, 50, 2 if quick else 4, deadline)
    result["settled"] = show("settled", settled)
    result["jumps"] = jumps(adapter, sets)
    print("  a proposal by `spectral` and its caps, ms:", result["jumps"], flush=True)
    return result


def alone(adapter: TorchAdapter, kernels: ChosenKernels, quick: bool) -> dict[str, float]:
    """Microseconds per step of all that the engine does around a step, host and device, without the step."""
    engine = build_engine(adapter, kernels)

    def taking(count: int) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for index in range(count):
            engine.before_step()
            engine.after_step(StepResult(1.0 + 0.01 * (index % 7), grad_norm=1.0, n_examples=1))
        torch.cuda.synchronize()
        return 1e6 * (time.perf_counter() - started) / count

    found = {"steps 1 to 50": taking(50), "steps 51 to 200": taking(150)}
    go_ahead(engine)
    found["settled"] = taking(50 if quick else 200)
    print("  engine without step, us:", {name: round(us) for name, us in found.items()}, flush=True)
    return found


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
            kernels.run_norms([moved], adapter.layout.group_slices(), xp)
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
