"""JAX and CuPy arrays through DLPack, and the choice that a run would make."""

from __future__ import annotations

import traceback
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import array_api_compat.torch
import numpy as np
import torch

from hybridcore.kernels import choose
from hybridcore.kernels.trial import ELEMENTS
from hybridcore_cupy import CupyKernels


def exchange(name: str, failures: list[Any]) -> bool:
    """Results on the framework's arrays against NumPy in float64."""
    try:
        xp = import_module(name)
        rng, kernels = np.random.default_rng(0), CupyKernels()
        given = [rng.standard_normal(100_003).astype(np.float32) for _ in range(3)]
        device = "cuda:0"
        vectors = [(xp.asarray(v),) for v in given]
        assert kernels.supports(xp, device, "float32"), f"{name} is not served"
        wide = [v.astype(np.float64) for v in given]
        for _ in range(20):
            got = kernels.products(vectors[0], vectors[1], xp)
            right = (wide[0] @ wide[0], wide[1] @ wide[1], wide[0] @ wide[1])
            np.testing.assert_allclose(got, right, rtol=0, atol=1e-6 * max(right))
            mixed = kernels.combine(vectors, [1.0, -2.0, 0.5], xp)[0]
            doubled = mixed * 2.0  # the framework goes on with what the kernel made
            expected = 2.0 * (wide[0] - 2.0 * wide[1] + 0.5 * wide[2])
            host = doubled.get() if hasattr(doubled, "get") else np.asarray(doubled)
            np.testing.assert_allclose(host, expected, atol=1e-5)
        print(f"{name}: equal to float64", flush=True)
        return True
    except Exception:
        failures.append({"where": f"exchange {name}", "traceback": traceback.format_exc()})
        return False


def choice() -> dict[str, Any]:
    """What `kernels.name = "auto"` takes on this card."""
    adapter: Any = SimpleNamespace(
        xp=array_api_compat.torch,
        device="cuda:0",
        layout=SimpleNamespace(total=ELEMENTS, bucket_dtype="float32"),
        read_params=lambda: (torch.zeros(1, device="cuda"),),
        synchronize=torch.cuda.synchronize,
    )
    chosen = choose("auto", {"cupy": CupyKernels}, adapter)
    for line in chosen.choices:
        print(f"  {line.operation:<12}{line.name:<11}{line.reason}")
    return chosen.summary()


def run(deadline: float, quick: bool, failures: list[Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"choice": choice()}
    for name in ("array_api_compat.cupy", "jax.numpy"):
        result[name] = exchange(name, failures)
    return result
