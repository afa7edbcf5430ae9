"""The JAX adapter on the device: state, donation, traces, what leaves the card, memory over many cycles."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from benchmarks.gpu_jax_lab import (
    CYCLES,
    batches,
    held_bytes,
    look,
    perceptron_adapter,
    same,
    traces,
)
from hybridcore.configfile import config_from_dict
from hybridcore.engine import Engine
from hybridcore.errors import MemoryBudgetError
from hybridcore.kernels.reference import REFERENCE

MIB = 2**20
WIDE = {False: 2048, True: 64}
"""Width of the perceptron whose memory is looked at."""


def snapshots(place: str) -> tuple[str, bool]:
    adapter, data = perceptron_adapter(256), batches()
    adapter.keep_snapshots(place)
    for batch in data[:3]:
        adapter.train_step(batch)
    kept, before = adapter.snapshot(), jax.tree.map(np.asarray, adapter.train_state)
    after = []
    for _ in range(2):
        for batch in data[3:6]:
            adapter.train_step(batch)
        after.append(jax.tree.map(np.asarray, adapter.train_state))
        adapter.restore(kept)
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(kept.state) if x.size > 1}
    sound = same(adapter.train_state, before) and same(*after) and not same(after[0], before)
    return f"restored twice, the same bits; kept in {'/'.join(sorted(kinds))}", sound


def jumps() -> tuple[str, bool]:
    adapter = perceptron_adapter(256)
    before = adapter.read_params()
    rng = np.random.default_rng(2)
    step = tuple(adapter.xp.asarray(rng.standard_normal(b.shape).astype(np.float32)) for b in before)
    truth = [
        np.asarray(b, np.float64) + 0.5 * np.asarray(d, np.float64) for b, d in zip(before, step, strict=True)
    ]
    adapter.apply_delta(step, 0.5)
    error = max(
        float(np.abs(np.asarray(b, np.float64) - t).max() / np.abs(t).max())
        for b, t in zip(adapter.read_params(), truth, strict=True)
    )
    return f"weights moved, {error:.0e} from float64", error < 2e-7


def dots() -> tuple[str, bool]:
    """The core's own inner products, which must not be computed in TensorFloat-32."""
    rng, adapter = np.random.default_rng(4), perceptron_adapter(16)
    u, v = (rng.standard_normal(300_007).astype(np.float32) for _ in range(2))
    found = REFERENCE.products((adapter.xp.asarray(u),), (adapter.xp.asarray(v),), adapter.xp)
    x, y = u.astype(np.float64), v.astype(np.float64)
    error = max(abs(f - t) for f, t in zip(found, (x @ x, y @ y, x @ y), strict=True)) / (x @ x)
    return f"within {error:.0e} of float64", error < 2e-6


def donation(quick: bool) -> tuple[str, bool]:
    """Whose memory a step takes: copies of the train state on the device while both states are at hand."""
    found: dict[bool, dict[str, Any]] = {}
    for donate in (True, False):
        batch = batches(1)[0]
        base, adapter = held_bytes(2), perceptron_adapter(WIDE[quick], donate)
        adapter.train_step(batch)
        state = sum(int(x.nbytes) for x in jax.tree.leaves(adapter.train_state))
        compiled = adapter._runner._compiled
        before = adapter.train_state
        held = jax.tree.leaves(before)
        after, report = compiled(before, batch, None)
        jax.block_until_ready((after, report))
        copies = (held_bytes(2) - base) / state
        analysis = compiled.lower(after, batch, None).compile().memory_analysis()
        adapter._state = after
        moved = jax.tree.leaves(adapter.params)
        adapter.apply_delta(adapter.read_params(), 0.01)
        gone = [x.is_deleted() for x in [*held, *moved]]
        found[donate] = {"gone": gone, "copies": copies, "aliased": analysis.alias_size_in_bytes / state}
        del adapter, before, after, held, moved
    yes, no = found[True], found[False]
    text = f"{yes['aliased']:.0%} of the state aliased, copies of it held: {yes['copies']:.2f}"
    text += f", without donation {no['copies']:.2f}"
    sound = all(yes["gone"]) and not any(no["gone"]) and yes["aliased"] > 0.99 and no["aliased"] == 0.0
    return text, sound and yes["copies"] < 1.2 and 1.8 < no["copies"] < 2.4


def trained(
    steps: int, width: int, memory: dict[str, Any], **tables: Any
) -> tuple[Any, list[float], int, list[str]]:
    """Engine, losses, bytes on the device at the end, and what was traced after the first quarter."""
    adapter, data = perceptron_adapter(width), batches()
    config = config_from_dict({**CYCLES, "memory": memory, **tables})
    engine = Engine.from_config(adapter, config, probes=data[:1])
    found = []
    for index in range(steps // 4):
        found.append(engine.step(data[index % 8]).loss)
    with traces() as traced:
        for index in range(steps // 4, steps):
            found.append(engine.step(data[index % 8]).loss)
    return engine, found, held_bytes(2), list(traced)


def retraces(quick: bool) -> tuple[str, bool]:
    engine, _, _, traced = trained(80 if quick else 200, 256, {"history": "host", "snapshots": "host"})
    counts = engine.counts
    text = f"{len(traced)} in {counts.real_steps} steps with {counts.jumps} jumps, {counts.failed} undone"
    return text, not traced and counts.jumps > counts.failed > 0


def leaving(quick: bool) -> tuple[str, bool]:
    """The same bits and fewer bytes with window means, and then snapshots too, in pinned host memory."""
    tables = {
        "predictor": {"name": "drift"},
        "history": {"window": 3, "windows": 6, "memory_budget_mib": 4e4},
    }
    tables["controller"] = {"name": "fixed", "fixed": {"horizon": 3.0, "full_steps": 20, "correct_steps": 3}}
    runs = {}
    for name, memory in {
        "device": {},
        "history": {"history": "host"},
        "both": {"history": "host", "snapshots": "host"},
    }.items():
        base = held_bytes(2)
        engine, losses, held, _ = trained(68, WIDE[quick], memory, **tables)
        copies = (held - base) / engine.adapter.layout.nbytes
        runs[name] = losses, jax.tree.map(np.asarray, engine.adapter.params), copies, engine.counts.jumps
        del engine
    equal = all(r[0] == runs["device"][0] and same(r[1], runs["device"][1]) for r in runs.values())
    copies = [r[2] for r in runs.values()]
    text = "copies of the weights held: " + ", ".join(f"{n} {r[2]:.1f}" for n, r in runs.items())
    text += f"; {runs['device'][3]} jumps, same bits {equal}"
    return text, equal and runs["device"][3] >= 2 and copies[0] - copies[1] >= 2.0 and copies[1] > copies[2]


def cycles(quick: bool) -> tuple[str, bool]:
    """Most bytes on the device within some cycles of trials, verdicts and rollbacks, early and late (F67)."""
    adapter, data = perceptron_adapter(256), batches()
    engine = Engine.from_config(adapter, config_from_dict(CYCLES), probes=data[:1])
    wanted, each = (40, 10) if quick else (500, 30)

    def until(jumps: int, look_at: bool = False) -> int:
        most = 0
        while engine.counts.jumps < jumps and engine.real_steps < 40 * wanted:
            engine.step(data[engine.real_steps % 8])
            most = max(most, held_bytes() if look_at else 0)
        return most

    until(each)
    early = until(2 * each, look_at=True)
    until(wanted - each)
    late = until(wanted, look_at=True)
    growth = late / early - 1.0
    text = f"{growth:+.2%} after {engine.counts.jumps} cycles, {engine.counts.failed} of them undone"
    return text, engine.counts.jumps >= wanted and engine.counts.failed > 0 and abs(growth) <= 0.01


def too_little() -> tuple[str, bool]:
    """A budget that does not hold the least, by configuration; and that of the allocator without one."""
    adapter, data = perceptron_adapter(1024), batches()
    free = adapter.free_bytes()
    engine = Engine.from_config(adapter, config_from_dict(CYCLES), probes=data[:1])
    told = free is None or 0.8 < 2 * engine.history.budget_bytes / free <= 1.01
    settings = {**CYCLES, "predictor": {"name": "drift"}, "history": {"memory_budget_mib": 8.0}}
    try:
        Engine.from_config(adapter, config_from_dict(settings), probes=data[:1])
    except MemoryBudgetError as error:
        wanted = ["history.memory_budget_mib"]
        wanted += [] if free is None else ["memory.history", "memory.snapshots"]
        return f"{error.fix}", told and all(option in str(error.fix) for option in wanted)
    return "it fitted", False


def run(deadline: float, quick: bool, rows: Any, failures: list[Any]) -> dict[str, Any]:
    checks = {
        "snapshots on the device": lambda: snapshots("device"),
        "snapshots in host memory": lambda: snapshots("host"),
        "a jump": jumps,
        "inner products": dots,
        "donation": lambda: donation(quick),
        "traced again": lambda: retraces(quick),
        "leaving the card": lambda: leaving(quick),
        "a budget too small": too_little,
        "memory": lambda: cycles(quick),
    }
    return {"seconds": look(checks, deadline, rows, failures)}
