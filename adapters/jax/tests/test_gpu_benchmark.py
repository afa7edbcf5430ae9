"""`benchmarks.gpu_jax` at its smallest, on the processor: every part runs and finds what it should."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
for folder in (ROOT, ROOT / "kernels/cupy/src"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from benchmarks import gpu_jax, gpu_jax_checks, gpu_jax_lab, gpu_jax_training  # noqa: E402


def test_it_says_what_it_left_out_and_ends_well(tmp_path, capsys):
    assert gpu_jax.main(["--quick", "--only", "kernels", "--json", str(tmp_path / "found.json")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["kernels"] == {"left out": True}
    assert "0 failures" in capsys.readouterr().out


@pytest.mark.parametrize("check", ["jumps", "donation", "too_little", "cycles"])
def test_the_adapter_passes(check):
    asks = {"donation", "cycles"}
    text, sound = getattr(gpu_jax_checks, check)(*([True] if check in asks else []))
    assert sound, text


def test_a_check_that_fails_is_reported(capsys):
    rows, failures = [], []
    checks = {"wrong": lambda: ("half", False), "breaks": lambda: 1 / 0, "late": lambda: ("", True)}
    gpu_jax_lab.look(dict(list(checks.items())[:2]), time.monotonic() + 60, rows, failures)
    gpu_jax_lab.look({"late": checks["late"]}, time.monotonic() - 1, rows, failures)
    assert rows == [("wrong", "half", False), ("late", "no time left", False)]
    assert failures[0]["where"] == "breaks" and "ZeroDivisionError" in failures[0]["traceback"]


def test_turns_go_there_and_back():
    seen = []
    steps = {name: (lambda batch, name=name: seen.append(name)) for name in ("plain", "engine")}
    taken = gpu_jax_training.rounds(steps, iter(int, 1), 2, 2, time.monotonic() + 60)
    assert seen == ["plain"] * 2 + ["engine"] * 4 + ["plain"] * 2
    rows = []
    arms = gpu_jax_training.show("turns", taken, rows)
    assert arms["plain"]["ratio"] == 1.0 and arms["engine"]["ratio"] > 0.0 and len(rows) == 1


def test_the_short_run_ends_at_its_cost():
    result = {}
    text, sound = gpu_jax_training.race(gpu_jax_training.Lab(True), 30, time.monotonic() + 300, result)
    assert sound, text
    costs = [point[0] for point in result["race"]["hybrid"]]
    assert costs == sorted(costs) and 30 <= costs[-1] < 45
