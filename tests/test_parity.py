"""F89: runs side by side, on records made by hand and on recorded runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import attrs
import pytest

from hybridcore.cli import execute
from hybridcore.errors import MetricsError
from hybridcore.parity import parities, parity
from hybridcore.records import Evaluation, RunRecord
from hybridcore.runner import run_task


@pytest.fixture
def record():
    return RunRecord(
        Path("one"),
        {"framework": "numpy", "seed": 3},
        tuple({"step": s, "loss": 1.0 / s} for s in range(1, 6)),
        (Evaluation(5, 5.0, 1.0, 5, 0.5),),
        ({"step": 3, "predictor": "drift", "horizon": 5.0},),
        (),
        ({"step": 5, "kept": True, "predictor": "drift", "jumps": 1},),
        ({"step": 2, "phase": "full", "length": 3},),
        (),
        None,
    )


def test_a_run_equals_itself(record):
    same = parity(record, record)
    assert same.holds(0.0) and same.first_difference is None


@pytest.mark.parametrize(
    ("field", "change", "step"),
    [
        ("phases", ({"step": 2, "phase": "full", "length": 4},), "phase 1"),
        ("phases", (), "phase 1"),
        ("jumps", ({"step": 4, "predictor": "drift"},), "jump 1"),
        ("verdicts", ({"step": 5, "kept": False, "predictor": "drift", "jumps": 1},), "verdict 1"),
    ],
)
def test_a_decision_that_differs_is_found(record, field, change, step):
    other = attrs.evolve(record, **{field: change})
    found = parity(other, record)
    assert not found.same_decisions and not found.holds(math.inf)
    assert found.first_difference.startswith(step)
    flags = {"phases": found.same_phases, "jumps": found.same_jumps, "verdicts": found.same_verdicts}
    assert [name for name, same in flags.items() if not same] == [field]


def test_the_earliest_difference_is_told(record):
    other = attrs.evolve(record, phases=(*record.phases, {"step": 9, "phase": "full", "length": 1}), jumps=())
    assert parity(other, record).first_difference == "jump 1: none against step 3, predictor drift"


@pytest.mark.parametrize("share", [1e-6, 1e-3, 0.5])
def test_the_largest_relative_deviation(record, share):
    steps = list(record.steps)
    steps[2] = {"step": 3, "loss": (1.0 + share) / 3.0}
    other = attrs.evolve(record, steps=tuple(steps))
    found = parity(other, record)
    assert found.loss_deviation == pytest.approx(share, rel=1e-9)
    assert found.holds(1.01 * share) and not found.holds(0.99 * share)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_a_loss_that_is_not_finite_on_one_side_is_infinitely_far(record, bad):
    other = attrs.evolve(record, steps=({"step": 1, "loss": bad},))
    assert parity(other, record).loss_deviation == math.inf


def test_without_runs_there_is_nothing_to_compare():
    with pytest.raises(MetricsError, match="no run to compare"):
        parities([])


def test_the_command_compares_recorded_runs(configuration, tmp_path, capsys):
    for name, changes in {"a": {}, "b": {}, "c": {"run": {"seed": 1}}}.items():
        run_task(configuration(**changes), out_dir=tmp_path / name)
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert execute(["compare-runs", a, b, "--tolerance", "0"]) == 0
    assert "differ" not in capsys.readouterr().out
    file = tmp_path / "parity.json"
    assert execute(["compare-runs", a, c, "--tolerance", "1e-4", "--json", str(file)]) == 1
    runs = json.loads(file.read_text())["runs"]
    assert runs[0]["loss_deviation"] == 0.0 and runs[1]["loss_deviation"] > 1e-4
    assert execute(["compare-runs", a, c]) == 0, "without a tolerance nothing fails"
