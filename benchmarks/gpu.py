"""Builds, checks and times the CUDA kernels on one GPU, in one call of less than nine minutes.

    python -m benchmarks.gpu [--json FILE] [--seconds 500] [--only checks,rollout,streams,...]

Needs PyTorch and CuPy; JAX where it is installed. Runs from a checkout: the distributions need not be
installed, only what they depend on (array-api-compat, attrs, cattrs, pluggy, tomli-w).

- checks: every kernel against float64 on odd, empty and strided arrays of every alignment; no operation that
  gives arrays waits for the device; memory stays flat; a failing kernel falls back.
- rollout: forecasts of the dynamics model `rssm` by the kernel and by NumPy, equality and time.
- streams: bandwidth of every kernel at three sizes as a share of a plain copy's in the same run, beside the
  Array API expressions on tensors and the same fused by `torch.compile` or `torch._foreach`.
- frameworks: JAX and CuPy arrays through DLPack.
- training: bookkeeping per real step of a byte-level GPT with 10 M and 124 M parameters, bf16 and compiled,
  in the first 200 steps and after 1,000 more.

A part that fails prints its traceback and leaves the others alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "adapters/torch/src", ROOT / "kernels/cupy/src"):
    sys.path.insert(0, str(folder))

PARTS = ("checks", "rollout", "streams", "frameworks", "modes", "training")


def versions() -> dict[str, Any]:
    """Card and versions."""
    import cupy
    import numpy
    import torch

    return {
        "date": date.today().isoformat(),
        "card": torch.cuda.get_device_name(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "cupy": cupy.__version__,
        "numpy": numpy.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--seconds", type=float, default=500.0, help="start nothing new after this long")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    options = parser.parse_args()
    try:
        import torch

        ready = torch.cuda.is_available()
    except ImportError:
        ready = False
    if not ready:
        print("no CUDA device for PyTorch: nothing to measure")
        return 2
    deadline = time.monotonic() + options.seconds
    results: dict[str, Any] = {"versions": versions(), "failures": []}
    print(results["versions"], flush=True)
    for part in options.only.split(","):
        started = time.monotonic()
        print(f"\n== {part}", flush=True)
        try:
            module = __import__(f"benchmarks.gpu_{part}", fromlist=["run"])
            results[part] = module.run(deadline, options.quick, results["failures"])
        except Exception:
            results["failures"].append({"where": part, "traceback": traceback.format_exc()})
        print(f"   ({time.monotonic() - started:.0f} s)", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")
    for failure in results["failures"]:
        print(f"\n-- failed: {failure['where']}\n{failure['traceback']}")
    print(f"\n{len(results['failures'])} failures")
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
