"""Whether one configuration takes the same path in every framework (F89).

Trains `examples/parity.toml` for several tasks, each time once per framework with the `hybridcore` command of
that framework's own environment, and puts the recorded runs side by side with ``hybridcore compare-runs``.
Exits with 1 where phases, jumps or verdicts differ, where nothing jumped, or where a loss deviates by more
than the case's tolerance.

    python benchmarks/parity.py [--quick] [--float64] [--case NAME ...] [--framework NAME=COMMAND ...]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parents[1]

CONFIG = ROOT / "examples" / "parity.toml"

COMMANDS = {
    "torch": ROOT / ".venv" / "bin" / "hybridcore",
    "jax": ROOT / ".venv-jax" / "bin" / "hybridcore",
    "tensorflow": ROOT / ".venv-tensorflow" / "bin" / "hybridcore",
}


@attrs.frozen
class Case:
    """One task.

    Attributes:
        name: What it is called in the table.
        settings: Overrides of the configuration, ``dotted.key=value``.
        tolerance: Largest relative deviation of a loss over all steps.
        quick: Whether a quick round has it.
        double: Largest relative deviation of a loss in float64.
        quick_double: Whether a quick round has it in float64.
    """

    name: str
    settings: tuple[str, ...]
    tolerance: float = 1e-4
    quick: bool = False
    double: float = 1e-9
    quick_double: bool = False


CASES = (
    Case("digits-mlp", ("task.name=digits-mlp",), quick=True, quick_double=True),
    Case("digits-mlp, adam", ("task.name=digits-mlp", "task.optimizer=adam", "task.learning_rate=1e-3")),
    Case(
        "stdlib-gpt",
        (
            "task.name=stdlib-gpt",
            "task.width=32",
            "task.depth=2",
            "task.heads=2",
            "task.context=32",
            "task.batch_size=8",
            "task.max_bytes=500000",
        ),
        quick=True,
    ),
    Case("poisson-pinn", ("task.name=poisson-pinn",)),
    Case("convection-pinn", ("task.name=convection-pinn",)),
    *(
        Case(
            name,
            (
                f"task.name={name}",
                "task.width=16",
                "task.depth=1",
                "task.heads=2",
                "task.max_bytes=500000",
                "task.pretrain_steps=10",
            ),
        )
        for name in ("lora-gpt", "finetune-gpt")
    ),
    Case("mnist-cnn, smooth", ("task.name=mnist-cnn", "task.smooth=true")),
    Case(
        "mnist-cnn, smooth, momentum",
        ("task.name=mnist-cnn", "task.smooth=true", "task.optimizer=momentum", "task.learning_rate=0.01"),
    ),
    Case("mnist-cnn", ("task.name=mnist-cnn",), tolerance=5e-2),
)
"""What is compared; `docs/how-to/frameworks.md` tells why `mnist-cnn` itself cannot stay within 1e-4 in
float32."""


def train(case: Case, framework: str, command: Path, folder: Path, steps: int, dtype: str) -> Path:
    """Train one case in one framework's environment; the folder of the run."""
    out = folder / dtype / case.name.replace(", ", "-") / framework
    given = (*case.settings, f"run.steps={steps}", f"run.dtype={dtype}")
    settings = [token for s in given for token in ("--set", s)]
    line = [str(command), "run", str(CONFIG), "--framework", framework, "--out", str(out), *settings]
    environment = _environment() | ({"JAX_ENABLE_X64": "1"} if dtype == "float64" else {})
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(line)}\n{done.stdout}{done.stderr}")
    return out


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2", "COLUMNS": "200"}


def compare(runs: list[Path], command: Path, tolerance: float) -> tuple[dict[str, Any], str, bool]:
    """What ``compare-runs`` found, its table, and whether the case holds."""
    target = runs[0].parent / "comparison.json"
    line = [str(command), "compare-runs", *map(str, runs), "--json", str(target)]
    done = subprocess.run(
        [*line, "--tolerance", str(tolerance)], env=_environment(), capture_output=True, text=True
    )
    if not target.exists():
        raise SystemExit(done.stdout + done.stderr)
    report = json.loads(target.read_text(encoding="utf-8"))
    summary = json.loads((runs[0] / "summary.json").read_text(encoding="utf-8"))
    report |= {k: summary[k] for k in ("jumps", "verdicts_kept", "verdicts_failed", "real_steps")}
    happened = summary["jumps"] > 0 and summary["verdicts_kept"] + summary["verdicts_failed"] > 0
    return report, done.stdout, done.returncode == 0 and happened


def _wanted(options: argparse.Namespace) -> list[tuple[Case, str]]:
    """Cases and precisions that the command asks for."""
    dtype = "float64" if options.float64 else "float32"
    if options.case:
        return [(case, dtype) for case in CASES if case.name in options.case]
    if not options.quick:
        return [(case, dtype) for case in CASES]
    single = [] if options.float64 else [(case, "float32") for case in CASES if case.quick]
    return single + [(case, "float64") for case in CASES if case.quick_double]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--case", action="append", help=f"default: all of {', '.join(c.name for c in CASES)}")
    parser.add_argument("--quick", action="store_true", help="the cases that take seconds")
    parser.add_argument("--float64", action="store_true", help="in float64; a quick round has both")
    parser.add_argument("--steps", type=int, default=200, help="real steps")
    parser.add_argument(
        "--framework", action="append", metavar="NAME=COMMAND", help="its hybridcore command; default: .venv*"
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    given = dict(item.split("=", 1) for item in options.framework or ())
    commands = {name: Path(path).absolute() for name, path in given.items()} or COMMANDS
    results, failed = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for case, dtype in _wanted(options):
            folder, tolerance = Path(temporary), case.double if dtype == "float64" else case.tolerance
            runs = [train(case, name, path, folder, options.steps, dtype) for name, path in commands.items()]
            report, table, holds = compare(runs, next(iter(commands.values())), tolerance)
            words = f"{'holds' if holds else 'DOES NOT HOLD'} within {tolerance:g}"
            print(f"{case.name}, {dtype}: {words}\n{table}", flush=True)
            results.append({"case": case.name, "dtype": dtype, "holds": holds, **report})
            failed += [] if holds else [case.name]
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
