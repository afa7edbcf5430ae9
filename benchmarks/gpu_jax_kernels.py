"""The CUDA kernels on JAX arrays: no copies, in the order of both streams, equal to float64, in a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as compat_numpy
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_jax_lab import CYCLES, batches, look, perceptron_adapter
from hybridcore.configfile import config_from_dict
from hybridcore.engine import Engine
from hybridcore.kernels import ChosenKernels
from hybridcore.kernels.reference import REFERENCE
from hybridcore.plugins import load_registry
from hybridcore_cupy import CupyKernels

SIZE = 1_000_003


def vectors(count: int, seed: int = 0) -> tuple[list[tuple[jax.Array]], list[Any]]:
    """Vectors of an odd size as JAX arrays and in float64."""
    rng = np.random.default_rng(seed)
    given = [rng.standard_normal(SIZE).astype(np.float32) for _ in range(count)]
    return [(jnp.asarray(v),) for v in given], [v.astype(np.float64) for v in given]


def pointers() -> tuple[str, bool]:
    import cupy

    array = vectors(1)[0][0][0]
    jax.block_until_ready(array)
    address = int(array.unsafe_buffer_pointer())
    there = int(cupy.from_dlpack(array).data.ptr) == address
    made = cupy.arange(8, dtype=cupy.float32)
    back = jax.dlpack.from_dlpack(made)
    again = int(back.unsafe_buffer_pointer()) == int(made.data.ptr)
    return f"the same address there {there} and back {again}", there and again


def operations() -> tuple[str, bool]:
    kernels, xp = CupyKernels(), jnp
    (a, b, c), (u, v, w) = vectors(3)
    worst = 0.0

    def compare(found: Any, truth: Any) -> None:
        nonlocal worst
        truth = np.asarray(truth)
        worst = max(worst, float(np.abs(np.asarray(found, np.float64) - truth).max() / np.abs(truth).max()))

    compare(kernels.products(a, b, xp), [u @ u, v @ v, u @ v])
    compare(kernels.gram([a, b, c], xp), np.stack([u, v, w]) @ np.stack([u, v, w]).T)
    compare(kernels.distance(a, b, xp), np.linalg.norm(u - v))
    compare(kernels.combine([a, b, c], [1.0, -2.0, 0.5], xp)[0], u - 2.0 * v + 0.5 * w)
    mean, step = kernels.window_mean(a, 10, b, xp)
    compare(mean[0], u / 10)
    assert step is not None
    compare(step[0], u / 10 - v)
    moved, found = kernels.displace(a, b, c, xp)
    assert found is not None
    compare(moved[0], u - v)
    compare(found, [(u - v) @ (u - v), w @ w, (u - v) @ w])
    whole, other = True, 0
    for dtype in ("bfloat16", "int8"):
        mine, theirs = (k.encode(a, dtype, 7, xp) for k in (kernels, REFERENCE))
        host = REFERENCE.encode((np.asarray(a[0]),), dtype, 7, compat_numpy)
        decoded = np.asarray(kernels.decode(mine, xp)[0])
        whole &= bool(np.array_equal(decoded, REFERENCE.decode(host, compat_numpy)[0]))
        other += int((mine.codes[0] != theirs.codes[0]).sum())
    text = f"within {worst:.0e} of float64; codes equal NumPy's: {whole}; JAX's own division turns {other}"
    # XLA's division turns about one code in a million, see hybridcore.kernels.encoding.
    return text, worst < 1e-6 and whole and other <= 100


def streams() -> tuple[str, bool]:
    """A kernel right behind long work of JAX, JAX right behind the kernel, and what it read is let go of."""
    kernels = CupyKernels()
    square = jnp.asarray(np.random.default_rng(3).standard_normal((2048, 2048)) / 45.0, jnp.float32)

    @jax.jit
    def slow(x: Any) -> Any:
        return jax.lax.fori_loop(0, 300, lambda _, y: jnp.tanh(y @ square), x).reshape(-1)

    adapter, wrong, kept = perceptron_adapter(256), 0, 0
    weights = np.asarray(adapter.read_params()[0], np.float64)
    for turn in range(20):
        start = square + 0.01 * turn
        truth = np.asarray(slow(start), np.float64)
        made = slow(start)
        mixed = kernels.combine([(made,), (made,)], [2.0, 1.0], jnp)[0]
        doubled = mixed * 2.0
        # A running sum, whose memory the next sum takes.
        total = adapter.read_params()
        double = kernels.combine([total], [2.0], jnp)[0]
        again = adapter.add_params(total, 1.0, 1.0)[0]
        kept += not total[0].is_deleted()
        pairs = ((doubled, 6.0 * truth), (double, 2.0 * weights), (again, 2.0 * weights))
        wrong += any(np.abs(np.asarray(a, np.float64) - b).max() > 1e-5 for a, b in pairs)
    return f"{wrong} of 20 wrong, {kept} sums in new memory", wrong == kept == 0


def chosen(quick: bool) -> tuple[str, bool]:
    """A run with kernels beside the reference's."""
    every = ChosenKernels(
        dict.fromkeys(("products", "combine", "displace", "window_mean", "gram"), CupyKernels())
    )
    data, ends = batches(), {}
    settings = {**CYCLES, "predictor": {"name": "spectral"}}
    settings["controller"] = {
        "name": "fixed",
        "fixed": {"horizon": 3.0, "full_steps": 12, "correct_steps": 3},
    }
    registry = load_registry()
    for name, kernels in {"reference": ChosenKernels({}), "all": every}.items():
        adapter, config = perceptron_adapter(256), config_from_dict(settings)
        make = registry.get("controller", "fixed")
        controller = make(make.Config(**config.controller.options["fixed"]))
        predictors = {"spectral": registry.get("predictor", "spectral")()}
        engine = Engine(adapter, config, controller, predictors, probes=data[:1], kernels=kernels)
        losses = [engine.step(data[i % 8]).loss for i in range(40 if quick else 80)]
        ends[name] = losses[-1], engine.counts.jumps, kernels.failure
    gap = max(abs(e[0] / ends["reference"][0] - 1.0) for e in ends.values())
    text = f"{ends['all'][1]} jumps, losses within {gap:.0e}"
    failed = [e[2] for e in ends.values() if e[2]]
    return text + "".join(failed), not failed and ends["all"][1] > 0 and gap < 1e-3


def run(deadline: float, quick: bool, rows: Any, failures: list[Any]) -> dict[str, Any]:
    if not CupyKernels().supports(jnp, perceptron_adapter(16).device, "float32"):
        print("  no CUDA device or no CuPy: the kernels are left out")
        return {"left out": True}
    checks: dict[str, Callable[[], tuple[str, bool]]] = {
        "DLPack": pointers,
        "operations": operations,
        "streams": streams,
        "a run with kernels": lambda: chosen(quick),
    }
    return {"seconds": look(checks, deadline, rows, failures)}
