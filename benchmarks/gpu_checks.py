"""Checks on the GPU: kernels against float64, waiting, streams, memory, fall-back."""

from __future__ import annotations

import logging
import math
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
        expected = [float(w.norm()) for _, w, _ in parts]
        return gap(kernels.run_norms(a, runs, xp), expected, max(expected))

    def apply_jump() -> float:
        worst = 0.0
        for cap in (0.05, 1e9):
            scales = {G.MATRIX: 0.5, G.NORM: -2.0}
            new, used = kernels.apply_jump(a, b, runs, scales, cap, xp)
            whole, right = math.sqrt(xx), {}
            for g in used:
                size = math.sqrt(sum(float(w @ w) for k, w, _ in parts if k is g))
                length = math.sqrt(sum(float(d @ d) for k, _, d in parts if k is g))
                factor = scales.get(g, 1.0)
                limit, moved = cap * max(size, 0.01 * whole), abs(factor) * length
                right[g] = factor * (limit / moved if moved > limit else 1.0)
                worst = max(worst, gap([used[g]], [right[g]], max(abs(right[g]), 1e-30)))
            expected = torch.cat([w + right[g] * d for g, w, d in parts])
            worst = max(worst, gap(new, expected, biggest(expected)))
        return worst

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

    own = (products, distance, gram, combine, window_mean, displace, run_norms, apply_jump, encode, decode)
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
    for name in ("combine", "window_mean", "encode", "decode", "compress", "rollout"):
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


def single_steps(kernels: CupyKernels, parts: list[Any], state: list[Any], horizon: int) -> float:
    """Largest relative error of one step of the kernel from each state of the path in float64."""
    from hybridcore.protocols import Ensemble

    exact, there = Ensemble(*[p.double() for p in parts]), Ensemble(*[p.cuda() for p in parts])
    hidden, actions, output = (s.double() for s in state)
    worst = 0.0
    for index in range(horizon):
        action = actions[index : index + 1]
        start = hidden.float().cuda(), action.float().cuda(), output.float().cuda()
        got, ended = kernels.rollout(there, *start, xp)
        rounded = hidden.float().double(), action.float().double(), output.float().double()
        right, last = REFERENCE.rollout(exact, *rounded, xp)
        for one, two in ((got, right), (ended, last)):
            worst = max(worst, float((one.cpu().double() - two).abs().max() / two.abs().max()))
        outputs, hidden = REFERENCE.rollout(exact, hidden, action, output, xp)
        output = outputs[0]
    return worst


def rollouts(failures: list[Any]) -> list[dict[str, Any]]:
    """Ensembles on the GPU against float64 on the CPU, and times (F70).

    Weights of deviation ``1 / sqrt(hidden)`` let rounding fade; 0.2 is chaotic for wide states and long
    horizons: there float32 itself leaves the exact path, PyTorch's on one processor further than on the
    other. What can be asked is the single step: from each state of the exact path, one step of the kernel
    must end where one in float64 does. How far whole paths part is shown beside it.
    """
    from hybridcore.protocols import Ensemble

    kernels, rows_ = CupyKernels(), []
    print("rollout: members x horizon x hidden, weights; error of a step, of the path, torch GPU, CPU; us")
    cases = [(m, t, h, 0.2) for m, t, h in ((1, 20, 64), (5, 20, 64), (5, 20, 256), (8, 80, 256))]
    cases += [(5, 20, 256, 256**-0.5), (8, 80, 256, 256**-0.5)]
    for members, horizon, width, deviation in cases:
        g = torch.Generator().manual_seed(0)
        shapes = ((6, 3 * width), (width, 3 * width), (3 * width,), (3 * width,), (width, 4), (4,))
        parts = [torch.randn(members, *s, generator=g) * deviation for s in shapes]
        state = [torch.randn(members, 1, width, generator=g), torch.randn(horizon, 1, 2, generator=g)]
        state.append(torch.randn(members, 1, 4, generator=g))
        right = REFERENCE.rollout(Ensemble(*[p.double() for p in parts]), *[s.double() for s in state], xp)[0]
        there = Ensemble(*[p.cuda() for p in parts]), *[s.cuda() for s in state]
        calls: dict[str, Callable[[], Any]] = {
            "kernel": lambda args=there: kernels.rollout(*args, xp),
            "gpu": lambda args=there: REFERENCE.rollout(*args, xp),
            "cpu": lambda p=parts, s=state: REFERENCE.rollout(Ensemble(*p), *s, xp),
        }
        row: dict[str, Any] = {"members": members, "horizon": horizon, "hidden": width, "weights": deviation}
        try:
            row["step_error"] = single_steps(kernels, parts, state, horizon)
            for name, call in calls.items():
                gap = call()[0].cpu().double() - right
                row[f"{name}_error"] = float(gap.abs().max() / right.abs().max())
                taken = []
                for _ in range(8):
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                    call()
                    torch.cuda.synchronize()
                    taken.append(1e6 * (time.perf_counter() - started))
                row[f"{name}_us"] = sorted(taken)[3]
            rows_.append(row)
            print(
                f"  {members} x {horizon} x {width:<4} {deviation:.3f}  "
                f"{row['step_error']:.1e} {row['kernel_error']:.1e}  "
                f"{row['gpu_error']:.1e} {row['cpu_error']:.1e} {row['kernel_us']:9.0f} "
                f"{row['gpu_us']:9.0f} {row['cpu_us']:9.0f}",
                flush=True,
            )
            fades = deviation < 0.1 or width * horizon < 256 * 80
            if not (row["step_error"] <= 1e-6 and (row["kernel_error"] <= 1e-5 or not fades)):
                failures.append({"where": "rollout", "traceback": f"too far from float64: {row}"})
        except Exception:
            failures.append({"where": f"rollout {members}", "traceback": traceback.format_exc()})
    return rows_


def run(deadline: float, quick: bool, failures: list[Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    jobs: dict[str, Callable[[], Any]] = {
        "equality": lambda: equality(quick, failures),
        "waiting": lambda: waiting(failures),
        "own_stream": own_stream,
        "memory": lambda: memory(quick, failures),
        "fall_back": lambda: falling_back(failures),
        "rollouts": lambda: rollouts(failures),
    }
    for name, job in jobs.items():
        if time.monotonic() > deadline:
            break
        try:
            result[name] = job()
        except Exception:
            failures.append({"where": name, "traceback": traceback.format_exc()})
    return result
