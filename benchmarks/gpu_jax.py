"""JAX on one GPU, in one call of less than 150 seconds: does the adapter hold there, and what does it cost?

    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.gpu_jax [--json FILE] [--only checks,kernels]

Needs JAX and optax; CuPy for the part `kernels`. Runs from a checkout. Without a GPU, or with --quick, sizes
are small and nothing is claimed about time.

- checks: snapshots bit for bit, jumps, donation, nothing traced again, window means and snapshots in pinned
  host memory, memory over 500 cycles, and what a run that does not fit is told.
- kernels: the CUDA kernels on JAX arrays through DLPack: no copies, in the order of both streams, equal to
  float64, and a run that uses them.
- training: a byte-level GPT with 10 M parameters computed in bfloat16: a short run with jumps beside one
  without, then bookkeeping per real step, every jump refused, beside the plain compiled loop.

A part that fails prints its traceback and leaves the others alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "adapters/jax/src", ROOT / "kernels/cupy/src"):
    sys.path.insert(0, str(folder))

PARTS = ("checks", "kernels", "training")

RESERVED = {"training": 60.0}
"""Seconds that the parts before leave to a part."""

Rows = list[tuple[str, str, bool]]
"""What was looked at, what was found, and whether it is as it should be."""


def versions() -> dict[str, Any]:
    """Card and versions."""
    import jax
    import numpy
    import optax

    device = jax.devices()[0]
    return {
        "date": date.today().isoformat(),
        "card": device.device_kind,
        "platform": device.platform,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "optax": optax.__version__,
        "numpy": numpy.__version__,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--seconds", type=float, default=140.0, help="start nothing new after this long")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    about = versions()
    quick = options.quick or about["platform"] == "cpu"
    results: dict[str, Any] = {"versions": about, "quick": quick, "failures": []}
    print(about, flush=True)
    rows: Rows = []
    parts = options.only.split(",")
    for index, part in enumerate(parts):
        until = begun + options.seconds - sum(RESERVED.get(later, 0.0) for later in parts[index + 1 :])
        started = time.monotonic()
        print(f"\n== {part}", flush=True)
        try:
            module = import_module(f"benchmarks.gpu_jax_{part}")
            results[part] = module.run(until, quick, rows, results["failures"])
        except Exception:
            results["failures"].append({"where": part, "traceback": traceback.format_exc()})
        print(f"   ({time.monotonic() - started:.0f} s)", flush=True)
        results["rows"] = rows
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")
    for failure in results["failures"]:
        print(f"\n-- failed: {failure['where']}\n{failure['traceback']}")
    print(f"\nJAX {about['jax']} on {about['card']}, {time.monotonic() - begun:.0f} s")
    for name, found, sound in rows:
        print(f"{'ok  ' if sound else 'FAIL'}  {name:<42}{found}")
    wrong = len(results["failures"]) + sum(not sound for _, _, sound in rows)
    print(f"{wrong} failures", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    # Adapters of the same model compile the same programs: each once, as far as the cache can tell.
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        status = main()
    raise SystemExit(status)
