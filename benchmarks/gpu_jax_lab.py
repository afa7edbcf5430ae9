"""What the parts of `benchmarks.gpu_jax` share: a perceptron, counts of traces and bytes, running checks."""

from __future__ import annotations

import gc
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybridcore_jax import JaxAdapter

TRACE = "/jax/core/compile/jaxpr_trace_duration"

CYCLES = {
    "phases": {"warmup_steps": 5, "full_steps": 3},
    "history": {"window": 3},
    "predictor": {"name": "last-update"},
    "controller": {"name": "fixed", "fixed": {"horizon": 60.0, "full_steps": 3, "correct_steps": 3}},
    "probe": {"tentative": False},
    "budget": {"share": 1.0, "grace_steps": 1e6, "backoff_steps": 0, "count_seconds": False},
}
"""A jump every few steps, so far that some are undone by their verdict."""

Check = Callable[[], tuple[str, bool]]


def perceptron(width: int, depth: int = 2) -> dict[str, jax.Array]:
    """Weights from the same seed."""
    rng = np.random.default_rng(0)
    sizes = [64, *[width] * depth, 10]
    weights = {}
    for index, (a, b) in enumerate(itertools.pairwise(sizes)):
        weights[f"{index}.weight"] = jnp.asarray(rng.standard_normal((a, b)) / a**0.5, jnp.float32)
        weights[f"{index}.bias"] = jnp.zeros(b)
    return weights


def losses(params: Any, batch: Any) -> jax.Array:
    """Cross-entropy of each example."""
    hidden = batch[0]
    for index in range(len(params) // 2):
        hidden = jnp.tanh(hidden) if index else hidden
        hidden = hidden @ params[f"{index}.weight"] + params[f"{index}.bias"]
    return optax.softmax_cross_entropy_with_integer_labels(hidden, batch[1])


def batches(count: int = 8, rows: int = 64) -> list[tuple[jax.Array, jax.Array]]:
    """Batches with a class that depends on the inputs."""
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((rows, 64)).astype(np.float32) for _ in range(count)]
    return [(jnp.asarray(x), jnp.asarray(x[:, :10].argmax(1))) for x in inputs]


def perceptron_adapter(width: int, donate: bool | None = None) -> JaxAdapter:
    """Adam on the perceptron."""
    return JaxAdapter(perceptron(width), optax.adam(1e-3), losses, learning_rate=1e-3, donate=donate)


def held_bytes(generation: int = 0) -> int:
    """Bytes on the device now: the allocators' counts, or without one the sum over all arrays alive.

    Args:
        generation: What Python's collector frees before; 2 frees old engines and adapters, too.
    """
    gc.collect(generation)
    stats = jax.devices()[0].memory_stats()
    if stats:
        cupy = sys.modules.get("cupy")
        made = cupy.get_default_memory_pool().used_bytes() if cupy is not None else 0
        return int(stats["bytes_in_use"]) + int(made)
    alive = [a for a in jax.live_arrays() if a.sharding.memory_kind == "device"]
    return sum(int(a.nbytes) for a in alive)


_listening: list[list[str]] = []


def _listen(event: str, duration: float, **about: Any) -> None:
    if event == TRACE:
        for found in _listening:
            found.append(str(about.get("fun_name", "?")))


@contextmanager
def traces() -> Iterator[list[str]]:
    """Names of the functions that JAX traces meanwhile."""
    if _listen not in _registered:
        jax.monitoring.register_event_duration_secs_listener(_listen)
        _registered.append(_listen)
    found: list[str] = []
    _listening.append(found)
    try:
        yield found
    finally:
        _listening.remove(found)


_registered: list[Any] = []


def same(one: Any, other: Any) -> bool:
    """Whether two pytrees hold the same bits."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def look(checks: dict[str, Check], deadline: float, rows: Any, failures: Any) -> dict[str, Any]:
    """Run checks until the deadline; seconds of each."""
    taken = {}
    for name, check in checks.items():
        started = time.monotonic()
        if started > deadline:
            rows.append((name, "no time left", False))
            continue
        try:
            found, sound = check()
            rows.append((name, found, bool(sound)))
            print(f"  {name}: {found}", flush=True)
        except Exception:
            failures.append({"where": name, "traceback": traceback.format_exc()})
            print(f"  {name}: failed", flush=True)
        taken[name] = round(time.monotonic() - started, 1)
    print("  seconds:", taken, flush=True)
    return taken
