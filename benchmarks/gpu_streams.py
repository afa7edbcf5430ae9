"""Bandwidth of the streaming kernels, beside plain and fused PyTorch."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch

from hybridcore.kernels import REFERENCE
from hybridcore.layout import ParamGroup
from hybridcore_cupy import CupyKernels
from hybridcore_cupy.scratch import Scratch

SIZES = {"1M": 1_000_000, "10M": 10_000_000, "124M": 124_000_000}
G = ParamGroup
Tensors = list[torch.Tensor]
ROTATED_BYTES = 400 << 20
"""Inputs are taken in turn from sets of this many bytes together, so that the L2 cache holds none."""


def device_seconds(call: Callable[[Tensors], Any], sets: list[Tensors], repeats: int) -> float:
    """Seconds per call on the device alone: calls are queued while it is kept busy, then run back to back."""
    for chosen in sets:
        call(chosen)
    best = float("inf")
    for _ in range(3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(60_000_000)
        begin.record()
        for index in range(repeats):
            call(sets[index % len(sets)])
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / repeats)
    return best


def call_seconds(call: Callable[[Tensors], Any], sets: list[Tensors]) -> float:
    """Median seconds of one call as a run makes it: Python, launches, the device and numbers read back."""
    taken = []
    for index in range(9):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call(sets[index % len(sets)])
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return sorted(taken)[4]


class Operation:
    """One operation in three forms.

    Attributes:
        arrays: Arrays it reads.
        nbytes: Bytes read and written per number.
        kernel: Through a kernel set.
        plain: The Array API expressions on tensors, results left on the device.
        fused: The function that `torch.compile` or `torch._foreach` gets.
        prepare: Called once per set of arrays, before any clock runs.
    """

    def __init__(
        self, arrays: int, nbytes: float, kernel: Any, plain: Any, fused: Any = None, prepare: Any = None
    ) -> None:
        self.arrays, self.nbytes, self.prepare = arrays, nbytes, prepare
        self.kernel, self.plain, self.fused = kernel, plain, fused


def operations(n: int) -> dict[str, Operation]:
    cut = n - n // 100
    runs = [(G.MATRIX, 0, slice(0, cut)), (G.BIAS, 0, slice(cut, n))]
    w = [0.5, -1.25, 2.0, 0.1, -0.3]

    def gram(t: Tensors) -> Tensors:
        return [torch.dot(t[i], t[j]) for i in range(len(t)) for j in range(i + 1)]

    def combine(t: Tensors) -> torch.Tensor:
        total = t[0] * w[0]
        for x, f in zip(t[1:], w[1:], strict=False):
            total = total + x * f
        return total

    def products(t: Tensors) -> Tensors:
        return [(t[0] * t[0]).sum(), (t[1] * t[1]).sum(), (t[0] * t[1]).sum()]

    def step(t: Tensors) -> Tensors:
        mean = t[0] * 0.1
        return [mean, mean - t[1]]

    def turn(t: Tensors) -> Tensors:
        d = t[0] - t[1]
        return [d, (d * d).sum(), (t[2] * t[2]).sum(), (d * t[2]).sum()]

    def plain_products(t: Tensors) -> Tensors:
        return [torch.matmul(t[0], t[0]), torch.matmul(t[1], t[1]), torch.matmul(t[0], t[1])]

    def plain_turn(t: Tensors) -> Tensors:
        d = t[0] - t[1]
        return [d, torch.matmul(d, d), torch.matmul(t[2], t[2]), torch.matmul(d, t[2])]

    def to_int8(t: Tensors) -> Any:
        return REFERENCE.encode((t[0],), "int8", 1, xp)

    def fused_int8(t: Tensors) -> Tensors:
        blocks = t[0][: n // 256 * 256].view(-1, 256)
        scale = blocks.abs().amax(1, keepdim=True) / 127.0
        return [(blocks / scale + torch.rand_like(blocks)).floor().to(torch.int8), scale]

    def decode(dtype: str) -> tuple[Any, Any, Any]:
        """Encoding ahead of the clock, through a kernel set, plain."""
        coded: dict[int, Any] = {}

        def prepare(t: Tensors) -> None:
            coded[t[0].data_ptr()] = REFERENCE.encode((t[0],), dtype, 1, xp)

        def through(k: Any, t: Tensors) -> Any:
            return k.decode(coded[t[0].data_ptr()], xp)

        return prepare, through, lambda t: through(REFERENCE, t)

    from_bfloat16, from_int8 = decode("bfloat16"), decode("int8")

    def b(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x,)

    return {
        "products": Operation(2, 8, lambda k, t: k.products(b(t[0]), b(t[1]), xp), plain_products, products),
        "distance": Operation(
            2,
            8,
            lambda k, t: k.distance(b(t[0]), b(t[1]), xp),
            lambda t: torch.linalg.vector_norm(t[0] - t[1]),
            lambda t: (t[0] - t[1]).square().sum(),
        ),
        "gram of 5": Operation(5, 20, lambda k, t: k.gram([b(x) for x in t], xp), gram, gram),
        "combine 5": Operation(5, 24, lambda k, t: k.combine([b(x) for x in t], w, xp), combine, combine),
        "window mean": Operation(
            1,
            8,
            lambda k, t: k.window_mean(b(t[0]), 10, None, xp),
            lambda t: t[0] * 0.1,
            lambda t: torch._foreach_mul(t, 0.1),
        ),
        "mean+step": Operation(2, 16, lambda k, t: k.window_mean(b(t[0]), 10, b(t[1]), xp), step, step),
        "difference": Operation(
            2,
            12,
            lambda k, t: k.displace(b(t[0]), b(t[1]), None, xp),
            lambda t: t[0] - t[1],
            lambda t: torch._foreach_sub([t[0]], [t[1]]),
        ),
        "turn": Operation(3, 16, lambda k, t: k.displace(b(t[0]), b(t[1]), b(t[2]), xp), plain_turn, turn),
        "run norms": Operation(
            1,
            4,
            lambda k, t: k.run_norms([b(t[0])], runs, xp),
            lambda t: [torch.linalg.vector_norm(t[0][s]) for _, _, s in runs],
            lambda t: torch._foreach_norm([t[0][s] for _, _, s in runs]),
        ),
        "to bf16": Operation(
            1,
            6,
            lambda k, t: k.encode(b(t[0]), "bfloat16", 1, xp),
            lambda t: t[0].to(torch.bfloat16),
            lambda t: t[0].to(torch.bfloat16),
        ),
        "from bf16": Operation(1, 6, from_bfloat16[1], from_bfloat16[2], prepare=from_bfloat16[0]),
        "to int8": Operation(
            1, 5 + 4 / 256, lambda k, t: k.encode(b(t[0]), "int8", 1, xp), to_int8, fused_int8
        ),
        "from int8": Operation(1, 5 + 4 / 256, from_int8[1], from_int8[2], prepare=from_int8[0]),
    }


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy of half a gigabyte."""
    source = torch.randn(1 << 27, device="cuda")
    target = torch.empty_like(source)
    seconds = device_seconds(lambda t: t[1].copy_(t[0]), [[source, target]], 20)
    return 8 * source.numel() / seconds


def one(name: str, operation: Operation, n: int, deadline: float) -> dict[str, Any]:
    count = max(1, min(24, ROTATED_BYTES // (4 * n * operation.arrays)))
    sets = [[torch.randn(n, device="cuda") for _ in range(operation.arrays)] for _ in range(count)]
    repeats = 40 if n < 5e7 else 12
    for chosen in sets if operation.prepare is not None else []:
        operation.prepare(chosen)
    kernels, read = CupyKernels(), Scratch.numbers
    row: dict[str, Any] = {"operation": name}
    row["call_us"] = 1e6 * call_seconds(lambda t: operation.kernel(kernels, t), sets)
    row["reference_call_us"] = 1e6 * call_seconds(lambda t: operation.kernel(REFERENCE, t), sets)
    try:  # the device's own time: nothing is read back
        Scratch.numbers = lambda self, arrays, count: np.ones(count)  # type: ignore[method-assign]
        seconds = device_seconds(lambda t: operation.kernel(kernels, t), sets, repeats)
    finally:
        Scratch.numbers = read  # type: ignore[method-assign]
    row["gb_s"] = operation.nbytes * n / seconds / 1e9
    row["plain"] = device_seconds(operation.plain, sets, repeats) / seconds
    if operation.fused is not None and time.monotonic() < deadline:
        fused = operation.fused
        if "_foreach" not in str(fused.__code__.co_names):
            fused = torch.compile(fused, dynamic=False)
        row["fused"] = device_seconds(fused, sets, repeats) / seconds
    return row


def run(deadline: float, quick: bool, failures: list[Any]) -> dict[str, Any]:
    torch._dynamo.config.cache_size_limit = 64
    bandwidth = copy_bandwidth()
    print(f"copy: {bandwidth / 1e9:.0f} GB/s read and written")
    print("share: of the copy's bandwidth; plain, fused: their time over the kernel's, on the device;")
    print("call: microseconds of the whole call, and of the reference's, numbers read back")
    result: dict[str, Any] = {"copy_gb_s": bandwidth / 1e9}
    for label, n in list(SIZES.items())[: 1 if quick else 3]:
        print(f"{label:<14}{'GB/s':>7}{'share':>7}{'plain':>7}{'fused':>7}{'call':>8}{'reference':>11}")
        rows = []
        for name, operation in operations(n).items():
            # Compiling takes the time: what is left for training is kept free.
            try:
                row = one(name, operation, n, deadline - 200.0)
                row["share"] = row["gb_s"] * 1e9 / bandwidth
                rows.append(row)
                print(
                    f"{name:<14}{row['gb_s']:7.0f}{row['share']:7.2f}{row['plain']:7.2f}"
                    f"{row.get('fused', float('nan')):7.2f}{row['call_us']:8.0f}"
                    f"{row['reference_call_us']:11.0f}",
                    flush=True,
                )
            except Exception:
                failures.append({"where": f"{name} at {label}", "traceback": traceback.format_exc()})
        result[label] = rows
        torch.cuda.empty_cache()
    return result
