"""Roll-outs of the dynamics model `rssm` on the GPU against NumPy on the processor: equality and time (F70).

Weights, starts and results lie on the host, as in a run; the kernel's time has the copies both ways in it.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as compat_numpy
import attrs
import numpy as np
import torch

from hybridcore.dynamics.rssm import Rssm, RssmOptions
from hybridcore.kernels import REFERENCE
from hybridcore.kernels.paths import RolloutCase
from hybridcore.protocols import Action, Ensemble, Phase, RolloutSizes, StepOutcome
from hybridcore_cupy import CupyKernels

REAL = Action(Phase.FULL, 1, "")
CASES = tuple((members, horizon) for members in (1, 5, 8) for horizon in (20, 80))


def median_us(call: Callable[[], Any], seconds: float = 0.3) -> float:
    """Median microseconds of a call that waits for its result."""
    call()
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 9:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return 1e6 * sorted(taken)[len(taken) // 2]


def busy_us(call: Callable[[], Any]) -> tuple[float, float]:
    """Microseconds of a call while PyTorch's stream has work queued, and of that work."""
    a = torch.randn(8192, 8192, device="cuda")
    torch.mm(a, a)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        torch.mm(a, a)
    before = time.perf_counter()
    call()
    own = time.perf_counter() - before
    torch.cuda.synchronize()
    return 1e6 * own, 1e6 * (time.perf_counter() - started)


def forecasts(members: int, horizon: int, kernels: CupyKernels) -> dict[str, float]:
    """A whole forecast of a model in a run: noise, paths, and what becomes of them; by either."""
    model = Rssm(RssmOptions(members=members, longest=horizon))
    model.reset(["last-update", "drift"], np.random.default_rng(0), compat_numpy, 50 << 20)
    rng = np.random.default_rng(1)
    for t in range(4 * horizon):
        loss = 0.5 + 2.0 * 0.98**t + 0.02 * float(rng.standard_normal())
        model.observe(rng.standard_normal(28), REAL, StepOutcome(loss, 0.01))
    model.train(3)
    features, found = rng.standard_normal(28), {}
    rollouts = {}
    for name, each in (("cpu", REFERENCE), ("gpu", kernels)):
        model.kernels = each
        rollouts[name] = model.rollout(features, REAL, horizon)
        found[f"forecast_{name}_us"] = median_us(lambda: model.rollout(features, REAL, horizon))
    one, other = rollouts["gpu"].mean, rollouts["cpu"].mean
    found["forecast_error"] = float(np.abs(one - other).max() / np.abs(other).max())
    return found


def row_of(members: int, horizon: int, kernels: CupyKernels) -> dict[str, Any]:
    case = RolloutCase.make(RolloutSizes(members=members, horizon=horizon))
    cpu, gpu, exact = case.on(REFERENCE), case.on(kernels), case.wide().on(REFERENCE)
    again = case.on(kernels)
    apart = np.max(
        [np.abs(g - c).max(axis=-1) / np.abs(c).max() for g, c in zip(gpu, cpu, strict=True)], axis=0
    )
    right = np.max(
        [np.abs(g - e).max(axis=-1) / np.abs(e).max() for g, e in zip(gpu, exact, strict=True)], axis=0
    )
    undecided = case.undecided()
    settled = ~undecided
    fresh = [
        attrs.evolve(case, models=Ensemble(dict(case.models.weights), case.models.classes)) for _ in range(2)
    ]
    turns = [0]

    def with_new_weights() -> Any:
        turns[0] += 1
        return fresh[turns[0] % 2].on(kernels)

    own, queued = busy_us(lambda: case.on(kernels))
    return {
        "members": members,
        "horizon": horizon,
        "paths": int(apart.size),
        "undecided": int(undecided.sum()),
        "error": float(apart[settled].max()),
        "error_float64": float(right[settled].max()),
        "worst": float(apart.max()),
        "same_bits": all(np.array_equal(a, b) for a, b in zip(gpu, again, strict=True)),
        "cpu_us": median_us(lambda: case.on(REFERENCE)),
        "gpu_us": median_us(lambda: case.on(kernels)),
        "gpu_new_weights_us": median_us(with_new_weights),
        "gpu_busy_us": own,
        "queued_us": queued,
        **(forecasts(members, horizon, kernels) if members > 1 else {}),
    }


def run(deadline: float, quick: bool, failures: list[Any]) -> dict[str, Any]:
    kernels, rows = CupyKernels(), []
    torch.zeros(1, device="cuda")  # makes the device's context
    print(f"default sizes of rssm, 8 paths per member, context 4; NumPy with {os.cpu_count()} cores to hand")
    print("members x horizon: error against CPU, float64, undecided paths; us: CPU, GPU, new weights, busy")
    for members, horizon in CASES[:1] if quick else CASES:
        if time.monotonic() > deadline:
            break
        try:
            row = row_of(members, horizon, kernels)
            rows.append(row)
            print(
                f"  {members} x {horizon:<3} {row['error']:.1e} {row['error_float64']:.1e} "
                f"{row['undecided']:2d} of {row['paths']:<3} {row['cpu_us']:7.0f} {row['gpu_us']:6.0f} "
                f"{row['gpu_new_weights_us']:6.0f} {row['gpu_busy_us']:6.0f} (of {row['queued_us']:.0f})",
                flush=True,
            )
            if members > 1:
                print(
                    f"      whole forecast: error {row['forecast_error']:.1e}, "
                    f"CPU {row['forecast_cpu_us']:.0f}, GPU {row['forecast_gpu_us']:.0f} us",
                    flush=True,
                )
            slow = members >= 5 and row["gpu_us"] >= row["cpu_us"]
            if slow or not (row["error"] <= 1e-4 and row["error_float64"] <= 1e-4 and row["same_bits"]):
                failures.append({"where": f"rollout {members} x {horizon}", "traceback": str(row)})
        except Exception:
            failures.append({"where": f"rollout {members} x {horizon}", "traceback": traceback.format_exc()})
    return {"rows": rows}
