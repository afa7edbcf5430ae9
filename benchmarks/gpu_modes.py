"""How people train on a GPU: precisions, compilers, captured graphs, optimizers, what leaves the card.

Every mode trains the same small byte-level GPT under an engine that jumps, beside eager float32.
"""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.gpu_training import corpus, loss_fn
from hybridcore.config import HybridConfig
from hybridcore.configfile import config_from_dict
from hybridcore.engine import Engine
from hybridcore.protocols import StepResult
from hybridcore_torch import TorchAdapter
from hybridcore_torch.models.transformer import Transformer

SHAPE = {"width": 256, "depth": 4, "heads": 4, "context": 128}
ROWS, STEPS = 32, 80

JUMPING = {
    "phases": {"warmup_steps": 10, "full_steps": 10},
    "predictor": {"name": "last-update"},
    "controller": {"name": "fixed", "fixed": {"horizon": 3.0}},
    "budget": {"share": 1.0, "grace_steps": 1000.0, "count_seconds": False},
    "verdict": {"confidence_z": 1e6},
}
READING = {
    **JUMPING,
    "history": {"window": 5, "windows": 6},
    "predictor": {"name": "drift"},
    "controller": {"name": "fixed", "fixed": {"horizon": 3.0, "full_steps": 30}},
}
"""Six window means are held before each jump."""

SHARES = {**JUMPING, "phases": {**JUMPING["phases"], "predict_mode": "step", "predict_steps": 4}}


class Checkpointed(nn.Module):
    """The transformer with its blocks' activations computed again in the backward pass."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model
        for block in model.blocks:
            inner = block.forward
            block.forward = lambda x, inner=inner: checkpoint(inner, x, use_reentrant=False)

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.model(tokens)


def small() -> Transformer:
    torch.manual_seed(0)
    return Transformer(vocabulary=256, **SHAPE).cuda()


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, **options)


def engine_of(adapter: TorchAdapter, settings: dict[str, Any]) -> Engine:
    config: HybridConfig = config_from_dict(settings)
    return Engine.from_config(adapter, config)


def free() -> int:
    """Let go of what earlier runs held; bytes that stay allocated all the same."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def train(make: Callable[[], TorchAdapter], settings: dict[str, Any] = JUMPING) -> dict[str, Any]:
    """Losses, jumps and memory of a run; a snapshot is restored at the end and compared."""
    base = free()
    adapter = make()
    engine = engine_of(adapter, settings)
    batches = corpus(ROWS, SHAPE["context"])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held, away, losses = [], [], []
    for index in range(STEPS):
        predicted = not engine.needs_backward
        losses.append(engine.step(batches[index % len(batches)]).loss)
        now = torch.cuda.memory_allocated()
        (away if predicted and not engine.needs_backward else held).append(now)
    peak = torch.cuda.max_memory_allocated()
    counts = engine.summary()
    kept, before = adapter.snapshot(), adapter.read_params()
    adapter.train_step(batches[0])
    moved = max(float((a - b).abs().max()) for a, b in zip(adapter.read_params(), before, strict=True))
    adapter.restore(kept)
    same = all(torch.equal(a, b) for a, b in zip(adapter.read_params(), before, strict=True))
    return {
        "losses": losses,
        "jumps": counts["jumps"],
        "predicted": counts["predicted_steps"],
        "restored": same and moved > 0.0,
        "held": held[-1] - base,
        "most": max(held) - base,
        "away": max(away) - base if away else None,
        "peak": peak - base,
    }


def scaled() -> TorchAdapter:
    model = small()
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    return TorchAdapter(model, adamw(model), loss_fn, scaler=scaler, autocast=torch.float16)


def compiled(**options: Any) -> TorchAdapter:
    model = small()
    return TorchAdapter(torch.compile(model, **options), adamw(model, fused=True), loss_fn)


def adapters() -> dict[str, Callable[[], TorchAdapter]]:
    """A fresh adapter per mode."""

    def plain(autocast: Any = None, wrap: Any = None, **options: Any) -> TorchAdapter:
        model = small()
        seen = model if wrap is None else wrap(model)
        return TorchAdapter(seen, adamw(model, **options), loss_fn, autocast=autocast)

    return {
        "eager float32": plain,
        "foreach": lambda: plain(foreach=True),
        "fused": lambda: plain(fused=True),
        "capturable": lambda: plain(capturable=True),
        "bfloat16 autocast": lambda: plain(torch.bfloat16),
        "float16 and scaler": scaled,
        "compiled": compiled,
        "compiled, CUDA graphs": lambda: compiled(mode="reduce-overhead"),
        "checkpointed": lambda: plain(wrap=Checkpointed),
    }


CLOSE = {"bfloat16 autocast": 3e-2, "float16 and scaler": 1e-2}
"""Largest relative deviation of a loss from eager float32 over the first 20 steps, before any jump."""


def modes(failures: list[Any], deadline: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    print("mode                      jumps  loss first  last   deviation  restored  peak MiB")
    for name, make in adapters().items():
        if time.monotonic() > deadline:
            break
        try:
            import torch._dynamo as dynamo

            dynamo.reset()
            run = train(make)
            exact = found.get("eager float32", run)["losses"]
            early = max(abs(a - b) / abs(b) for a, b in zip(run["losses"][:20], exact[:20], strict=True))
            graphs = dynamo.utils.counters["stats"].get("unique_graphs", 0)
            found[name] = {**run, "deviation": early, "graphs": graphs}
            print(
                f"{name:<24}{run['jumps']:7d}{run['losses'][0]:12.4f}{run['losses'][-1]:7.3f}{early:12.1e}"
                f"{run['restored']!s:>10}{run['peak'] / 2**20:10.0f}",
                flush=True,
            )
            sound = run["jumps"] > 0 and run["restored"] and run["losses"][-1] < 0.8 * run["losses"][0]
            if not (sound and early <= CLOSE.get(name, 1e-3)):
                failures.append({"where": f"mode {name}", "traceback": str({**run, "early": early})})
        except Exception:
            failures.append({"where": f"mode {name}", "traceback": traceback.format_exc()})
    if "checkpointed" in found and found["checkpointed"]["peak"] >= found["eager float32"]["peak"]:
        failures.append({"where": "checkpointed", "traceback": "the peak is not lower"})
    return found


def whole_step_graph(failures: list[Any]) -> dict[str, Any]:
    """Forward, backward and update captured as one CUDA graph: jumps reach its weights by address."""
    model = small()
    optimizer = adamw(model, capturable=True)
    adapter = TorchAdapter(model, optimizer, loss_fn)
    batches = corpus(ROWS, SHAPE["context"])
    still = tuple(t.clone() for t in batches[0])

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = loss_fn(model, still).mean()
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    config = config_from_dict(JUMPING)
    engine = Engine.from_config(adapter, config, probes=batches[:2])
    losses = []
    for index in range(STEPS):
        for into, value in zip(still, batches[index % len(batches)], strict=True):
            into.copy_(value)
        engine.before_step()
        graph.replay()
        losses.append(loss.item())
        engine.after_step(StepResult(losses[-1], n_examples=ROWS))
    jumps = engine.summary()["jumps"]
    kept, before = adapter.snapshot(), adapter.read_params()
    graph.replay()
    first = adapter.read_params()
    adapter.restore(kept)
    graph.replay()
    again = all(torch.equal(a, b) for a, b in zip(adapter.read_params(), first, strict=True))
    moved = not all(torch.equal(a, b) for a, b in zip(first, before, strict=True))
    print(
        f"one graph for a whole step: {jumps} jumps, loss {losses[0]:.3f} to {losses[-1]:.3f}, replay {again}"
    )
    if not (jumps and again and moved and losses[-1] < 0.8 * losses[0]):
        failures.append({"where": "whole-step graph", "traceback": str((jumps, again, moved, losses))})
    return {"jumps": jumps, "first": losses[0], "last": losses[-1], "replayed": again}


def leaving(failures: list[Any]) -> dict[str, Any]:
    """Snapshots, optimizer state and window means in host memory: the same bits, less on the card (F63)."""

    def one(memory: dict[str, Any], settings: dict[str, Any] = SHARES) -> dict[str, Any]:
        def make() -> TorchAdapter:
            model = small()
            return TorchAdapter(model, adamw(model, fused=True), loss_fn)

        return train(make, {**settings, "memory": memory})

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        runs = {
            "device": one({}),
            "snapshots on the host": one({"snapshots": "host"}),
            "and no optimizer in Predict": one({"snapshots": "host", "offload_optimizer": True}),
        }
        means = {name: one({"history": name}, READING) for name in ("device", "host")}
    finally:
        torch.use_deterministic_algorithms(False)
    base = runs["device"]
    runs["window means"], runs["window means on the host"] = means["device"], means["host"]
    print("memory                          jumps  held MiB  at most MiB  in Predict MiB  same losses")
    for name, run in runs.items():
        pairs = zip(run["losses"], (means["device"] if "means" in name else base)["losses"], strict=True)
        run["same"] = all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
        held, most = run["held"] / 2**20, run["most"] / 2**20
        away = "-" if run["away"] is None else f"{run['away'] / 2**20:.1f}"
        print(f"{name:<32}{run['jumps']:5d}{held:10.1f}{most:13.1f}{away:>16}{run['same']!s:>13}", flush=True)
    host, both = runs["snapshots on the host"], runs["and no optimizer in Predict"]
    moments = 2 * 4 * sum(p.numel() for p in small().parameters())
    fewer = host["held"] < 0.8 * base["held"] and host["away"] - both["away"] > 0.9 * moments
    fewer &= means["device"]["most"] - means["host"]["most"] > moments
    if not (fewer and all(r["same"] and r["restored"] and r["jumps"] for r in runs.values())):
        short = {n: {k: v for k, v in r.items() if k != "losses"} for n, r in runs.items()}
        failures.append({"where": "leaving the card", "traceback": str(short)})
    return runs


def cycles(failures: list[Any], quick: bool) -> dict[str, Any]:
    """Most allocated memory within some cycles of trials, verdicts and rollbacks, early and late (F67)."""
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 10)).cuda()

    def losses(net: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")

    adapter = TorchAdapter(model, adamw(model), losses)
    settings = {
        "phases": {"warmup_steps": 5, "full_steps": 3},
        "history": {"window": 3},
        "predictor": {"name": "last-update"},
        # So far that some jumps are undone by their verdict.
        "controller": {"name": "fixed", "fixed": {"horizon": 60.0, "full_steps": 3, "correct_steps": 3}},
        "probe": {"tentative": False},
        "budget": {"share": 1.0, "grace_steps": 1e6, "backoff_steps": 0, "count_seconds": False},
    }
    x = torch.randn(64, 64, device="cuda")
    batch = (x, x[:, :10].argmax(1))
    engine = Engine.from_config(adapter, config_from_dict(settings), probes=[batch])
    wanted, each = (100, 20) if quick else (500, 30)

    def until(jumps: int) -> int:
        most = 0
        while engine.counts.jumps < jumps and engine.real_steps < 40 * wanted:
            engine.step(batch)
            most = max(most, torch.cuda.memory_allocated())
        return most

    until(each)
    early = until(2 * each)
    until(wanted - each)
    growth = until(wanted) / max(early, 1) - 1.0
    print(f"memory after {engine.counts.jumps} cycles, {engine.counts.failed} of them undone: {growth:+.2%}")
    steady = quick or (engine.counts.failed > 0 and abs(growth) <= 0.01)
    if engine.counts.jumps < wanted or not steady:
        failures.append({"where": "cycles", "traceback": f"{engine.summary()} {growth:.2%}"})
    return {"cycles": engine.counts.jumps, "failed": engine.counts.failed, "growth": growth}


def run(deadline: float, quick: bool, failures: list[Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    jobs: dict[str, Callable[[], Any]] = {
        "modes": lambda: modes(failures, deadline),
        "whole_step_graph": lambda: whole_step_graph(failures),
        "leaving": lambda: leaving(failures),
        "cycles": lambda: cycles(failures, quick),
    }
    for name, job in jobs.items():
        if time.monotonic() > deadline:
            break
        try:
            result[name] = job()
        except Exception:
            failures.append({"where": name, "traceback": traceback.format_exc()})
        torch.cuda.empty_cache()
    return result
