"""Checks on the GPU: kernels against float64, waiting, streams, memory, fall-back."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import torch

from hybridcore.kernels import REFERENCE, ChosenKernels
from hybridcore.kernels.encoding import BLOCK
from hybridcore.kernels.trial import Sample
from hybridcore.layout import ParamGroup
from hybridcore_cupy import CupyKernels

Buckets = tuple[torch.Tensor, ...]
SIZES = ((0,), (1,), (3, 5), (1023,), (4099, 0, 17), (1_000_003,), (30_000_001,))
G = ParamGroup


def draw(sizes: tuple[int, ...], offset: int, stride: int, seed: int) -> Buckets:
    """Normal numbers in buckets that begin `offset` numbers after an aligned address."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def bucket(n: int) -> torch.Tensor:
        return torch.randn(stride * n + 8, device="cuda", generator=generator)[offset:][: stride * n : stride]

    return tuple(bucket(n) for n in sizes)


def wide(buckets: Buckets) -> torch.Tensor:
    return torch.cat([b.double() for b in buckets])


def gap(got: Any, expected: Any, scale: float) -> float:
    """Largest error over `scale`."""
    got = wide(got) if isinstance(got, tuple) and got and isinstance(got[0], torch.Tensor) else got
    got = torch.as_tensor(got, dtype=torch.float64, device="cuda")
    expected = torch.as_tensor(expected, dtype=torch.float64, device="cuda")
    if got.numel() == 0:
        return 0.0
    return float((got - expected).abs().max()) / max(scale, 1e-30)


def biggest(x: torch.Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def cases(kernels: CupyKernels, vectors: list[Buckets]) -> dict[str, Callable[[], float]]:
    """Relative error of each operation against float64."""
    a, b, c = vectors[:3]
    x, y, z = wide(a), wide(b), wide(c)
    xx, yy, zz = float(x @ x), float(y @ y), float(z @ z)
    matrix = torch.stack([wide(v) for v in vectors])
    weights = [0.5, -1.25, 2.0, 0.1, -0.3][: len(vectors)]
    factors = torch.tensor(weights, dtype=torch.float64, device="cuda")
    runs = []
    for index, bucket in enumerate(a):
        n = bucket.shape[0]
        cuts = (0, n // 3, n - n // 5, n)
        for g, start, stop in zip((G.MATRIX, G.NORM, G.BIAS), cuts[:-1], cuts[1:], strict=True):
            runs.append((g, index, slice(start, stop)))
    parts = [(g, wide((a[i][s],)), wide((b[i][s],))) for g, i, s in runs]

    def products() -> float:
        return gap(kernels.products(a, b, xp), [xx, yy, float(x @ y)], max(xx, yy))

    def distance() -> float:
        expected = float((x - y).norm())
        return gap([kernels.distance(a, b, xp)], [expected], expected)

    def gram() -> float:
        expected = matrix @ matrix.T
        return gap(kernels.gram(vectors, xp), expected, biggest(expected))

    def combine() -> float:
        expected = factors @ matrix
        return gap(kernels.combine(vectors, weights, xp), expected, biggest(matrix) * sum(map(abs, weights)))

    def window_mean() -> float:
        mean, step = kernels.window_mean(a, 10, b, xp)
        only, _ = kernels.window_mean(a, 10, None, xp)
        assert step is not None
        scale = max(biggest(x / 10), biggest(y))
        return max(gap(mean, x / 10, scale), gap(only, x / 10, scale), gap(step, x / 10 - y, scale))

    def displace() -> float:
        step, sums = kernels.displace(a, b, c, xp)
        only, _ = kernels.displace(a, b, None, xp)
        d = x - y
        expected = [float(d @ d), zz, float(d @ z)]
        scale = max(biggest(x), biggest(y))
        return max(gap(step, d, scale), gap(only, d, scale), gap(sums, expected, max(expected[:2])))

    def run_norms() -> float:
        expected = [[float(part[k].norm()) for part in parts] for k in (1, 2)]
        return gap(kernels.run_norms([a, b], runs, xp), expected, max(map(max, expected)))

    def encode() -> float:
        """0 where all codes equal the reference's bit for bit; the bounds are checked too."""
        worst = 0.0
        for dtype in ("bfloat16", "int8"):
            mine, right = kernels.encode(a, dtype, 5, xp), REFERENCE.encode(a, dtype, 5, xp)
            for p, q in zip((*mine.codes, *mine.scales), (*right.codes, *right.scales), strict=True):
                if not torch.equal(p, q):
                    worst = 1.0
            for bucket, back in zip(a, kernels.decode(mine, xp), strict=True):
                error = (back - bucket).abs()
                if dtype == "bfloat16":
                    sound = bool((error <= bucket.abs() * 2.0**-8).all())
                else:
                    padded = torch.nn.functional.pad(bucket, (0, -bucket.shape[0] % BLOCK)).view(-1, BLOCK)
                    level = padded.abs().amax(1, keepdim=True).expand(-1, BLOCK).reshape(-1) / 127.0
                    sound = bool((error <= level[: bucket.shape[0]] * 1.0001).all())
                worst = worst if sound else 2.0
        return worst

    def decode() -> float:
        worst = 0.0
        for dtype in ("bfloat16", "int8"):
            coded = REFERENCE.encode(a, dtype, 5, xp)
            worst = max(worst, gap(kernels.decode(coded, xp), wide(REFERENCE.decode(coded, xp)), 1.0))
        return worst

    own = (products, distance, gram, combine, window_mean, displace, run_norms, encode, decode)
    return {case.__name__: case for case in own}


def equality(quick: bool, failures: list[Any]) -> dict[str, float]:
    kernels = CupyKernels()
    worst: dict[str, float] = {}
    for sizes in SIZES[:-1] if quick else SIZES:
        for offset, stride in ((0, 1), (1, 1), (3, 1), (0, 3)):
            if sum(sizes) > 2_000_000 and (offset, stride) in ((3, 1), (0, 3)):
                continue
            vectors = [draw(sizes, offset if k % 2 else 0, stride, k) for k in range(5)]
            mixed = [draw(sizes, offset, stride, k) for k in range(5)]
            for family in (vectors, mixed):
                for name, case in cases(kernels, family).items():
                    try:
                        worst[name] = max(worst.get(name, 0.0), case())
                    except Exception:
                        if not any(f["where"] == f"equality {name}" for f in failures):
                            where = f"equality {name}"
                            failures.append({"where": where, "traceback": traceback.format_exc()})
    for name, error in worst.items():
        if not error <= 1e-6:
            failures.append({"where": f"equality {name}", "traceback": f"relative error {error:.3g} > 1e-6"})
    print("relative error against float64 (encode: 0 = codes equal bit for bit, bounds kept)")
    print("  " + "  ".join(f"{name} {error:.1e}" for name, error in worst.items()), flush=True)
    return worst


def waiting(failures: list[Any]) -> dict[str, bool]:
    """Whether an operation that gives arrays returns while the device is still busy with older work."""
    kernels, found = CupyKernels(), {}
    sample = Sample.make(xp, torch.zeros(1, device="cuda"), 1 << 20)
    for name in ("combine", "window_mean", "encode", "decode", "compress"):
        try:
            sample.calls[name](kernels)
            torch.cuda.synchronize()
            torch.cuda._sleep(200_000_000)  # about a tenth of a second
            started = time.perf_counter()
            sample.calls[name](kernels)
            queued = time.perf_counter() - started
            torch.cuda.synchronize()
            found[name] = queued < 0.5 * (time.perf_counter() - started)
        except Exception:
            failures.append({"where": f"waiting {name}", "traceback": traceback.format_exc()})
    print("returns while the device is busy:", found, flush=True)
    return found


def own_stream() -> bool:
    """Work is queued behind what PyTorch's current stream holds, on a stream that is not the default one."""
    stream, kernels = torch.cuda.Stream(), CupyKernels()
    a = (torch.zeros(1 << 22, device="cuda"),)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        a[0].fill_(2.0)
        doubled = kernels.combine([a, a], [1.0, 1.0], xp)[0]
        sound = bool((doubled == 4.0).all())
    print("follows PyTorch's current stream:", sound, flush=True)
    return sound


def memory(quick: bool, failures: list[Any]) -> dict[str, float]:
    """Growth of allocated memory over 500 rounds of all operations (F67)."""
    import cupy

    kernels = CupyKernels()
    sample = Sample.make(xp, torch.zeros(1, device="cuda"), 1 << 18)

    def used() -> float:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() + cupy.get_default_memory_pool().used_bytes()

    before = 0.0
    rounds = 50 if quick else 500
    for index in range(rounds):
        for call in sample.calls.values():
            call(kernels)
        if index == 9:
            before = used()
    growth = used() / before - 1.0
    if abs(growth) > 0.01:
        failures.append({"where": "memory", "traceback": f"grew by {growth:.2%} over {rounds} rounds"})
    print(f"memory after {rounds} rounds of all operations: {growth:+.2%}", flush=True)
    return {"growth": growth}


def falling_back(failures: list[Any]) -> bool:
    """An allocation that the card cannot make brings the reference back with one warning."""

    class Greedy(CupyKernels):
        def combine(self, vectors: Any, weights: Any, xp: Any) -> Any:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")

    logging.getLogger("hybridcore").setLevel(logging.ERROR)
    chosen = ChosenKernels({"combine": Greedy(), "gram": Greedy()})
    a = (torch.ones(5, device="cuda"),)
    sound = bool((chosen.combine([a, a], [1.0, 2.0], xp)[0] == 3.0).all()) and chosen.failure is not None
    sound = sound and chosen.used("gram") == "reference"
    print("out of memory falls back:", sound, "|", (chosen.failure or "")[:90], flush=True)
    if not sound:
        failures.append({"where": "fall-back", "traceback": str(chosen.summary())})
    return sound


def run(deadline: float, quick: bool, failures: list[Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    jobs: dict[str, Callable[[], Any]] = {
        "equality": lambda: equality(quick, failures),
        "waiting": lambda: waiting(failures),
        "own_stream": own_stream,
        "memory": lambda: memory(quick, failures),
        "fall_back": lambda: falling_back(failures),
    }
    for name, job in jobs.items():
        if time.monotonic() > deadline:
            break
        try:
            result[name] = job()
        except Exception:
            failures.append({"where": name, "traceback": traceback.format_exc()})
    return result
