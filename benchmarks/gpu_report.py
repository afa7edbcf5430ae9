"""The tables of docs/benchmarks.md from what `benchmarks/gpu.py --json` wrote.

python -m benchmarks.gpu_report gpu.json
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any


def streams(found: dict[str, Any]) -> list[str]:
    """Share of the copy's bandwidth, and time of plain and fused PyTorch over the kernel's, by size."""
    sizes = [size for size in ("1M", "10M", "124M") if size in found]
    lines = [
        "| operation | " + " | ".join(f"{s}: share, plain, fused" for s in sizes) + " | call at 1M, µs |",
        "|---|" + "---|" * (len(sizes) + 1),
    ]
    for index, first in enumerate(found[sizes[0]]):
        cells = []
        for size in sizes:
            row = found[size][index]
            fused = row.get("fused", math.nan)
            cells.append(
                f"{row['share']:.2f}, {row['plain']:.2f}x, " + ("-" if math.isnan(fused) else f"{fused:.2f}x")
            )
        calls = f"{first['call_us']:.0f} ({first['reference_call_us']:.0f})"
        lines.append(f"| {first['operation']} | " + " | ".join(cells) + f" | {calls} |")
    return lines


def training(found: dict[str, Any]) -> list[str]:
    """Time per step over the plain loop's, and the engine's own time without a step."""
    parts = ("steps 1 to 50", "steps 51 to 200", "first 200 steps", "settled")
    lines = ["| model | arm | " + " | ".join(parts) + " |", "|---|---|" + "---|" * len(parts)]
    for label, model in found.items():
        for arm in model[parts[0]]:
            if arm == "plain":
                cells = [f"{model[p][arm]['ms']:.2f} ms" for p in parts]
            else:
                cells = [f"{model[p][arm]['ratio']:.3f}" for p in parts]
            lines.append(f"| {label} | {arm} | " + " | ".join(cells) + " |")
        for name, us in model["alone"].items():
            early = 0.25 * us[parts[0]] + 0.75 * us[parts[1]]
            values = (us[parts[0]], us[parts[1]], early, us["settled"])
            cells = [
                f"{v:,.0f} µs ({v / 10 / model[p]['plain']['ms']:.1f} %)"
                for p, v in zip(parts, values, strict=True)
            ]
            lines.append(f"| {label} | {name}, engine alone | " + " | ".join(cells) + " |")
    return lines


def modes(found: dict[str, Any]) -> list[str]:
    """Ways to train, and what leaves the card."""
    lines = [
        "| mode | jumps | loss: first, last | apart from eager float32 | peak MiB |",
        "|---|---|---|---|---|",
    ]
    for name, r in found.get("modes", {}).items():
        ends = f"{r['losses'][0]:.3f}, {r['losses'][-1]:.3f}"
        lines.append(f"| {name} | {r['jumps']} | {ends} | {r['deviation']:.0e} | {r['peak'] / 2**20:.0f} |")
    lines += ["", "| memory | held MiB | at most | in Predict | same losses |", "|---|---|---|---|---|"]
    for name, r in found.get("leaving", {}).items():
        same = "yes" if r["same"] else "no"
        sizes = ["-" if r[k] is None else f"{r[k] / 2**20:.1f}" for k in ("held", "most", "away")]
        lines.append(f"| {name} | " + " | ".join(sizes) + f" | {same} |")
    if "cycles" in found:
        c = found["cycles"]
        lines += ["", f"{c['cycles']} cycles, {c['failed']} of them undone: memory {c['growth']:+.2%}."]
    return lines


def rollouts(rows: list[dict[str, Any]]) -> list[str]:
    """Roll-outs by the kernel and by NumPy."""
    lines = [
        "| members x horizon | error against NumPy, float64 | undecided paths | µs: NumPy | kernel "
        "| with new weights | beside training | forecast: NumPy | kernel |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        names = (
            "cpu_us",
            "gpu_us",
            "gpu_new_weights_us",
            "gpu_busy_us",
            "forecast_cpu_us",
            "forecast_gpu_us",
        )
        times = " | ".join(f"{r[name]:,.0f}" if name in r else "-" for name in names)
        errors = f"{r['error']:.0e}, {r['error_float64']:.0e}"
        undecided = f"{r['undecided']} of {r['paths']}"
        lines.append(f"| {r['members']} x {r['horizon']} | {errors} | {undecided} | {times} |")
    return lines


def main() -> int:
    results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(", ".join(f"{name} {value}" for name, value in results["versions"].items()))
    if "streams" in results:
        print(f"\nCopy: {results['streams']['copy_gb_s']:.0f} GB/s read and written.\n")
        print("\n".join(streams(results["streams"])))
    if "rollout" in results:
        print("\n" + "\n".join(rollouts(results["rollout"]["rows"])))
    if "modes" in results:
        print("\n" + "\n".join(modes(results["modes"])))
    if "frameworks" in results:
        operations = results["frameworks"]["choice"]["operations"]
        print("\n" + "\n".join(f"- `{name}`: {reason}" for name, reason in operations.items()))
    if "training" in results:
        print("\n" + "\n".join(training(results["training"])))
    for failure in results["failures"]:
        print(f"\nfailed: {failure['where']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
