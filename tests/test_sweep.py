"""Parameter sweeps: what is written, in which order, and what a second call does (F47, F48, F75, F76)."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import sys
from pathlib import Path

import pytest
from test_cli import CONFIG, HEADER

from hybridcore.cli import execute
from hybridcore.configfile import config_from_dict
from hybridcore.errors import ConfigError, MetricsError
from hybridcore.records import read_run, speedup
from hybridcore.sweep import parse_grid, read_sweep, summarise_sweep

RATES, HORIZONS = (0.02, 0.1), (3.0, 6.0)
GRID = ["--grid", "task.learning_rate=0.02,0.1", "--grid", "controller.fixed.horizon=3.0,6.0"]


@pytest.fixture
def project(tmp_path, monkeypatch, toy):
    """A folder with a configuration and a task of its own; the working directory."""
    (tmp_path / "own_problem.py").write_text(HEADER + inspect.getsource(toy.build))
    (tmp_path / "hybrid.toml").write_text(CONFIG + '\n[controller]\nname = "fixed"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_problem", None)
    yield tmp_path
    sys.modules.pop("own_problem", None)


def written(folder="swept"):
    return json.loads(Path(folder, "sweep.json").read_text())


def test_grid_values_are_toml_and_bare_words_strings():
    grid = parse_grid(["a.b=1e-3,2", "c=drift,last-update", "d=true", "f=[1,2],[3]"])
    assert grid["a.b"] == (1e-3, 2)
    assert grid["c"] == ("drift", "last-update")
    assert grid["d"] == (True,)
    assert grid["f"] == ([1, 2], [3])


@pytest.mark.parametrize("items", [[], ["a"], ["a="], ["=1"], ["a=1", "a=2"], ["a=1,1"], ["run.seed=1,2"]])
def test_grids_without_sense_are_refused(items):
    with pytest.raises(ConfigError):
        parse_grid(items)


def test_every_combination_is_trained_with_every_seed_and_recorded(project, capsys):
    assert execute(["sweep", "hybrid.toml", *GRID, "--seeds", "2", "--out", "swept"]) == 0
    shown, data = capsys.readouterr(), written()
    wanted = set(itertools.product(RATES, HORIZONS, (0, 1)))
    made = {
        (r["settings"]["task.learning_rate"], r["settings"]["controller.fixed.horizon"], r["seed"]): r
        for r in data["runs"]
    }
    assert set(made) == wanted
    assert len(data["runs"]) == len(wanted)
    for (rate, horizon, seed), run in made.items():
        record = read_run(Path("swept", run["directory"]))
        assert record.start["config"] == run["config"]
        assert record.start["config"]["task"]["learning_rate"] == rate
        assert record.start["config"]["controller"]["fixed"]["horizon"] == horizon
        assert (record.seed, record.final_loss) == (seed, run["final_loss"])
        assert run["cost"] == record.summary["cost"]
        assert run["seconds"] == record.summary["elapsed"] > 0.0
        assert run["counts"]["real_steps"] == sum(e["event"] == "real-step" for e in record.events) == 40
        assert run["counts"]["jumps"] == len(record.jumps)
        config_from_dict(run["config"])
    points = data["points"]
    assert [p["final_loss"] for p in points] == sorted(p["final_loss"] for p in points)
    for point in points:
        keys = tuple(point["settings"].values())
        one, other = (made[(*keys, seed)]["final_loss"] for seed in (0, 1))
        assert point["final_loss"] == pytest.approx((one + other) / 2)
        assert point["final_loss_error"] == pytest.approx(abs(one - other) / 2)
    table = [line.split() for line in shown.out.splitlines() if "±" in line and "mean" not in line]
    assert [(float(c[0]), float(c[1])) for c in table] == [tuple(p["settings"].values()) for p in points]
    assert "8/8 learning_rate=0.02 horizon=3.0 hybrid seed 1" in shown.err


def test_a_second_call_trains_only_what_is_missing(project, capsys, monkeypatch):
    call = ["sweep", "hybrid.toml", *GRID, "--arm", "baseline", "--out", "swept"]
    assert execute(call) == 0
    first = written()
    for run in first["runs"]:
        assert run["counts"]["jumps"] == 0
    files = {p: p.stat().st_mtime_ns for p in Path("swept").rglob("metrics.jsonl")}
    broken = sorted(files)[1]
    (broken.parent / "sweep-run.json").unlink()  # as after a kill: its record was not finished
    broken.write_text(broken.read_text()[:200])
    assert execute(call) == 0
    changed = {p for p, time in files.items() if p.stat().st_mtime_ns != time}
    assert changed == {broken}
    assert "3 of 4 runs from before" in capsys.readouterr().out
    losses = [[run["final_loss"] for run in data["runs"]] for data in (first, written())]
    assert losses[0] == losses[1]  # the one that was trained again is the same run


def test_other_settings_are_other_runs(project):
    call = ["sweep", "hybrid.toml", "--grid", "task.learning_rate=0.02", "--out", "swept"]
    execute(call)
    execute([*call, "--set", "run.steps=20"])
    (run,) = written()["runs"]
    assert run["counts"]["real_steps"] == 20
    assert len(list(Path("swept").rglob("metrics.jsonl"))) == 2


def test_interrupted_sweep_goes_on_where_it_stopped(project, capsys):
    call = ["sweep", "hybrid.toml", "--grid", "task.learning_rate=0.02,0.1", "--out", "swept"]
    source = Path("own_problem.py").read_text()
    Path("own_problem.py").write_text(source.replace("== fail_at", "== 10 and learning_rate > 0.05"))
    assert execute(call) == 130
    data = written()
    assert data["interrupted"] is True
    assert [run["settings"]["task.learning_rate"] for run in data["runs"]] == [0.02]
    hint = "interrupted: 1 of 2 runs are finished; the same command with --out swept goes on"
    assert hint in capsys.readouterr().err
    sys.modules.pop("own_problem")
    Path("own_problem.py").write_text(source)
    assert execute(call) == 0
    data = written()
    assert (data["interrupted"], len(data["runs"])) == (False, 2)
    assert all(run["counts"]["real_steps"] == 40 for run in data["runs"])
    assert "1 of 2 runs from before" in capsys.readouterr().out


def test_the_baseline_is_trained_once_for_what_it_reads_and_gives_paired_speedups(project, capsys):
    """F47, F76: four combinations, two rates; the horizon is the engine's alone."""
    call = ["sweep", "hybrid.toml", *GRID, "--seeds", "2", "--baseline", "--out", "swept"]
    assert execute(call) == 0
    data, shown = written(), capsys.readouterr()
    bases = {(r["settings"]["task.learning_rate"], r["seed"]): r for r in data["baselines"]}
    assert set(bases) == set(itertools.product(RATES, (0, 1))) and len(data["baselines"]) == 4
    for base in data["baselines"]:
        record = read_run(Path("swept", base["directory"]))
        assert (record.arm, record.seed, len(record.jumps)) == ("baseline", base["seed"], 0)
        assert record.start["config"]["task"]["learning_rate"] == base["settings"]["task.learning_rate"]
        assert list(base["settings"]) == ["task.learning_rate"]
    for run in data["runs"]:
        base = bases[run["settings"]["task.learning_rate"], run["seed"]]
        assert run["baseline"] == base["directory"]
        curves = [read_run(Path("swept", r["directory"])).evaluations for r in (run, base)]
        gain = speedup(*curves)
        assert (run["speedup"], run["speedup_cost"]) == (gain.wall, gain.cost)
        assert gain.cost > 0.0
    for point in data["points"]:
        own = [r for r in data["runs"] if r["settings"] == point["settings"]]
        assert point["speedup_cost"] == pytest.approx(sum(r["speedup_cost"] for r in own) / 2)
        assert f"{point['speedup_cost']:.2f}" in shown.out
    announced = [line.split(" · ")[0] for line in shown.err.splitlines()]
    assert announced[:3] == [
        "1/12 learning_rate=0.02 baseline seed 0",
        "2/12 learning_rate=0.02 horizon=3.0 hybrid seed 0",
        "3/12 learning_rate=0.02 horizon=6.0 hybrid seed 0",
    ]
    assert execute(call) == 0
    assert "12 of 12 runs from before" in capsys.readouterr().out
    again = written()
    assert (again["runs"], again["baselines"]) == (data["runs"], data["baselines"])


def test_a_sweep_begun_without_a_baseline_can_have_one_later(project, capsys):
    call = ["sweep", "hybrid.toml", "--grid", "task.learning_rate=0.02,0.1", "--out", "swept"]
    assert execute(call) == 0
    first = written()
    assert {r["speedup"] for r in first["runs"]} == {None}, "F48: null without a baseline, never 0"
    assert execute([*call, "--baseline"]) == 0
    assert "2 of 4 runs from before" in capsys.readouterr().out
    second = written()
    assert [r["final_loss"] for r in second["runs"]] == [r["final_loss"] for r in first["runs"]]
    assert all(r["speedup_cost"] > 0 for r in second["runs"])
    assert execute([*call, "--baseline", "--arm", "baseline"]) == 2


def test_an_interrupted_baseline_goes_on(project, capsys):
    call = ["sweep", "hybrid.toml", "--grid", "task.learning_rate=0.02,0.1", "--baseline", "--out", "swept"]
    source = Path("own_problem.py").read_text()
    Path("own_problem.py").write_text(source.replace("== fail_at", "== 10 and learning_rate > 0.05"))
    assert execute(call) == 130
    assert "interrupted: 2 of 4 runs are finished" in capsys.readouterr().err
    assert "Interrupted" in Path("swept/report.html").read_text()
    assert (len(written()["runs"]), len(written()["baselines"])) == (1, 1)
    sys.modules.pop("own_problem")
    Path("own_problem.py").write_text(source)
    assert execute(call) == 0
    cut = written()
    assert "Interrupted" not in Path("swept/report.html").read_text()
    assert execute([*call[:-1], "fresh"]) == 0
    losses = [[(r["final_loss"], r["speedup_cost"]) for r in d["runs"]] for d in (cut, written("fresh"))]
    assert losses[0] == losses[1]


def test_what_a_sweep_found_is_read_back(project):
    call = ["sweep", "hybrid.toml", "--grid", "task.learning_rate=0.02,0.1", "--baseline", "--out", "swept"]
    assert execute(call) == 0
    found, data = read_sweep("swept"), written()
    assert [p["final_loss"] for p in summarise_sweep(found)] == [p["final_loss"] for p in data["points"]]
    assert [p["speedup_cost"] for p in summarise_sweep(found)] == [p["speedup_cost"] for p in data["points"]]
    assert (found.arm, found.framework, found.interrupted) == ("hybrid", "numpy", False)
    before = Path("swept/report.png").read_bytes()
    Path("swept/report.png").unlink()
    assert execute(["report", "swept"]) == 0
    assert Path("swept/report.png").read_bytes() == before
    for text, why in (
        ("{", "no JSON"),
        ('{"schema": 9}', "schema 1"),
        ('{"schema": 1, "runs": [{"seed": 0}]}', "'runs' is damaged"),
        (
            json.dumps({**data, "baselines": [{**data["baselines"][0], "cost": "12"}]}),
            "'baselines' is damaged",
        ),
    ):
        Path("swept/sweep.json").write_text(text)
        with pytest.raises(MetricsError, match="results of a sweep") as caught:
            read_sweep("swept")
        assert why in str(caught.value.got)
    with pytest.raises(MetricsError):
        read_sweep("nowhere")


def test_diverged_runs_come_last_and_say_why(project, capsys):
    nan = "float(adapter.probe_loss"
    source = Path("own_problem.py").read_text()
    Path("own_problem.py").write_text(
        source.replace("yield x[picked]", "yield x[picked] * (math.nan if learning_rate > 1 else 1)").replace(
            "import itertools", "import itertools\nimport math"
        )
    )
    assert nan in source
    call = ["sweep", "hybrid.toml", "--grid", "task.learning_rate=5.0,0.1", "--out", "swept"]
    assert execute(call) == 0
    best, worst = written()["points"]
    assert math.isfinite(best["final_loss"])
    assert (worst["diverged"], worst["final_loss"]) == (1, None)
    (run,) = [run for run in written()["runs"] if run["error"]]
    assert "the run diverged" in run["error"]
    assert "1 diverged" in capsys.readouterr().out
    assert execute(call) == 0  # and is not tried again
    assert "2 of 2 runs from before" in capsys.readouterr().out


def test_mistakes_are_found_before_anything_is_trained(project, capsys):
    assert execute(["sweep", "hybrid.toml", "--grid", "run.steps=10,zero", "--out", "swept"]) == 2
    assert "run.steps: wrong type (got 'zero', expected an integer)" in capsys.readouterr().err
    assert execute(["sweep", "hybrid.toml", "--grid", "phases.warmup_step=1", "--out", "swept"]) == 2
    assert "did you mean 'warmup_steps'" in capsys.readouterr().err
    assert execute(["sweep", "hybrid.toml", *GRID, "--arm", "tuned"]) == 2
    assert execute(["sweep", "hybrid.toml", *GRID, "--seeds", "0"]) == 2
    assert execute(["sweep", "hybrid.toml"]) == 2
    assert not Path("swept").exists()
