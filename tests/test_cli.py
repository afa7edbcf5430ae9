from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from hybridcore.cli import execute
from hybridcore.configfile import config_from_dict, load_preset
from hybridcore.records import read_run

HEADER = (
    "import itertools\nimport numpy as np\nfrom hybridcore.protocols import OptimizerSpec, TaskRun\n"
    "from hybridcore.reference import ReferenceAdapter, SoftmaxRegression\n\n"
)
CONFIG = """
[run]
steps = 40
framework = "numpy"
evaluate_every = 20

[task]
name = "own_problem:build"

[phases]
warmup_steps = 5
full_steps = 5

[history]
window = 5
"""
FRAMEWORKS = ("torch", "tensorflow", "jax", "keras", "hybridcore_torch", "matplotlib", "sklearn")


@pytest.fixture
def project(tmp_path, monkeypatch, toy):
    """A folder with a configuration and a task of its own; the working directory."""
    (tmp_path / "own_problem.py").write_text(HEADER + inspect.getsource(toy.build))
    (tmp_path / "hybrid.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    sys.modules.pop("own_problem", None)


def python(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, check=False, timeout=60
    )


@pytest.mark.parametrize(
    "code", ["import hybridcore", "from hybridcore.cli import execute; execute(['--help'])"]
)
def test_neither_import_nor_help_imports_a_framework(code, tmp_path):
    check = (
        f"{code}\nimport sys\nfound = [m for m in {FRAMEWORKS} if m in sys.modules]\nassert not found, found"
    )
    done = python("-c", check, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_command_and_lists_all():
    code = (
        "from hybridcore.cli import execute\nexecute(['--help'])\nimport sys\n"
        "assert not [m for m in sys.modules if m in ('cattrs', 'numpy', 'hybridcore.cli.run')]"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    for command in ("run", "compare", "report", "config", "plugins", "doctor"):
        assert f" {command} " in done.stdout


def test_module_can_be_run():
    done = python("-m", "hybridcore", "--version")
    assert (done.returncode, done.stdout.strip()) == (0, "0.1.0")


def test_run_records_and_shows_a_summary(project, capsys):
    code = execute(
        ["run", "hybrid.toml", "--out", "here", "--set", "run.seed=3", "--set", "phases.full_steps=4"]
    )
    shown = capsys.readouterr()
    assert code == 0
    record = read_run(project / "here")
    assert record.seed == 3
    assert record.start["config"]["phases"]["full_steps"] == 4
    assert "final validation loss" in shown.out
    assert "hybrid seed 3 · step 40/40" in shown.err


def test_run_goes_to_a_new_folder_by_default_and_never_overwrites(project, capsys):
    assert execute(["run", "hybrid.toml", "--arm", "baseline"]) == 0
    (folder,) = (project / "runs").iterdir()
    assert folder.name.startswith("own_problem-build-baseline-")
    assert execute(["run", "hybrid.toml", "--out", str(folder)]) == 1
    assert "holds a run already" in capsys.readouterr().err


def test_run_with_a_baseline_reports_speedup(project, capsys):
    execute(["run", "hybrid.toml", "--arm", "baseline", "--out", "base"])
    execute(["run", "hybrid.toml", "--arm", "lr-x3", "--baseline", "base", "--out", "fast"])
    assert "loss gap to baseline" in capsys.readouterr().out
    assert json.loads(Path("fast/summary.json").read_text())["speedup_cost"] > 1.0


def test_trace_logs_decisions_with_reasons(project, capsys):
    execute(["run", "hybrid.toml", "--trace", "--out", "here"])
    logged = [line for line in capsys.readouterr().err.splitlines() if line.startswith("INFO")]
    assert any("full for" in line for line in logged)
    execute(["run", "hybrid.toml", "--out", "there"])
    assert "INFO" not in capsys.readouterr().err


def test_framework_that_is_not_installed_names_the_command(project, capsys):
    config = 'run.framework="numpy"'
    code = execute(
        ["run", "balanced", "--set", config, "--set", "task.name=digits-mlp", "--framework", "nonesuch"]
    )
    shown = capsys.readouterr().err
    assert code == 1
    assert "nonesuch" in shown
    assert "Traceback" not in shown


def test_wrong_configuration_exits_with_two_and_names_every_mistake(project, capsys):
    code = execute(["run", "hybrid.toml", "--set", "phases.warmup_step=1", "--set", "run.steps=zero"])
    shown = capsys.readouterr().err
    assert code == 2
    assert "phases.warmup_step: unknown key; did you mean 'warmup_steps'?" in shown
    assert "run.steps: wrong type (got 'zero', expected an integer)" in shown
    assert "where: hybrid.toml" in shown
    assert not (project / "runs").exists()


def test_unknown_predictor_is_found_by_the_check(project, capsys):
    assert execute(["config", "check", "hybrid.toml", "--set", "predictor.name=last-updat"]) == 2
    assert "did you mean 'last-update'" in capsys.readouterr().err
    assert execute(["config", "check", "hybrid.toml", "--set", "predictor.last-update.horizn=3"]) == 2
    assert "predictor.last-update.horizn: unknown key" in capsys.readouterr().err
    assert execute(["config", "check", "hybrid.toml"]) == 0


def test_missing_file_suggests_the_closest(project, capsys):
    assert execute(["run", "hybird.toml"]) == 2
    assert "did you mean 'hybrid.toml'" in capsys.readouterr().err


def test_wrong_command_line_exits_with_two(capsys):
    assert execute(["run"]) == 2
    assert execute(["compare", "balanced", "--seeds", "0"]) == 2
    assert execute(["compare", "balanced", "--arms", "hybird"]) == 2
    assert "did you mean 'hybrid'" in capsys.readouterr().err


def test_config_init_writes_every_key_and_loads_back(project, capsys):
    assert execute(["config", "init", "new.toml", "--preset", "cautious"]) == 0
    text = Path("new.toml").read_text()
    assert config_from_dict(tomllib.loads(text)) == load_preset("cautious")
    assert "# Real optimizer steps (those with a backward pass).\nsteps = " in text
    assert execute(["config", "init", "new.toml"]) == 2
    assert execute(["config", "init", "new.toml", "--force"]) == 0
    assert config_from_dict(tomllib.loads(Path("new.toml").read_text())) == load_preset("balanced")


def test_config_show_prints_a_configuration_that_loads(project, capsys):
    assert execute(["config", "show", "hybrid.toml", "--set", "run.steps=7"]) == 0
    config = config_from_dict(tomllib.loads(capsys.readouterr().out))
    assert (config.run.steps, config.phases.warmup_steps) == (7, 5)


def test_compare_writes_table_json_and_figures_and_report_reads_them(project, capsys):
    code = execute(["compare", "hybrid.toml", "--seeds", "2", "--arms", "hybrid,none", "--out", "cmp"])
    assert code == 0
    assert "speed-up, wall clock" in capsys.readouterr().out
    written = json.loads(Path("cmp/comparison.json").read_text())
    assert [row["arm"] for row in written["rows"]] == ["baseline", "hybrid", "none"]
    assert {run["seed"] for run in written["runs"]} == {0, 1}
    assert Path("cmp/report.png").stat().st_size > 10_000
    assert execute(["report", "cmp", "--out", "elsewhere"]) == 0
    assert Path("elsewhere/report.html").exists()
    assert execute(["report", "runs-that-are-not-there"]) == 1


def test_a_task_is_compared_by_its_name_and_gone_on_with(project, capsys):
    words = ["compare", "quadratic", "--framework", "numpy", "--seeds", "1", "--arms", "hybrid"]
    words += ["--set", "run.steps=40", "--set", "run.evaluate_every=20", "--target", "0.7"]
    assert execute([*words, "--out", "q"]) == 0
    written = json.loads(Path("q/comparison.json").read_text())
    assert written["target"] == 0.7
    assert written["config"]["task"]["name"] == "quadratic"
    before = Path("q/hybrid/seed-0/metrics.jsonl").read_bytes()
    assert execute([*words, "--out", "q"]) == 1, "a folder with runs is not overwritten"
    assert execute([*words, "--out", "q", "--resume"]) == 0
    assert Path("q/hybrid/seed-0/metrics.jsonl").read_bytes() == before
    assert json.loads(Path("q/report.json").read_text())["rows"][0]["arm"] == "baseline"
    assert execute(["compare", "quadratik"]) != 0


def test_an_interrupted_comparison_says_how_far_it_came_and_how_it_goes_on(project, capsys):
    source = Path("own_problem.py").read_text()
    Path("own_problem.py").write_text(source.replace("== fail_at", "== 20 and seed > 0"))
    call = ["compare", "hybrid.toml", "--seeds", "2", "--arms", "hybrid", "--out", "cmp"]
    assert execute(call) == 130
    hint = "interrupted: 2 of 4 runs are finished; the same command with --resume --out cmp goes on"
    assert hint in capsys.readouterr().err
    sys.modules.pop("own_problem")
    Path("own_problem.py").write_text(source)
    assert execute([*call, "--resume"]) == 0
    assert "interrupted" not in capsys.readouterr().err
    assert execute([*call[:-2], "--resume", "--set", "run.directory=nowhere"]) == 1
    assert "--resume --out DIR" in capsys.readouterr().err


def test_control_c_before_the_first_step_is_no_silence(project, capsys):
    source = Path("own_problem.py").read_text()
    Path("own_problem.py").write_text(source.replace("rng = np", "raise KeyboardInterrupt\n    rng = np", 1))
    for command in (["compare", "hybrid.toml", "--out", "new"], ["run", "hybrid.toml", "--out", "new"]):
        assert execute(command) == 130
        assert "interrupted" in capsys.readouterr().err
        assert not list(Path().glob("new/**/summary.json"))


def test_without_matplotlib_compare_still_reports_the_table(project, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert execute(["compare", "hybrid.toml", "--seeds", "1", "--arms", "hybrid", "--out", "cmp"]) == 0
    shown = capsys.readouterr()
    assert "pip install 'hybridcore[report]'" in shown.err
    assert "baseline" in shown.out


def test_doctor_names_devices_and_missing_adapters(capsys, monkeypatch):
    from hybridcore.cli import doctor

    monkeypatch.setattr(doctor, "_EXTRAS", (("no_such_module_here", "figures", "pip install it"),))
    execute(["doctor"])
    shown = capsys.readouterr().out
    numpy_line = next(line for line in shown.splitlines() if line.startswith("numpy") and "cpu" in line)
    assert "ready" in numpy_line
    assert "pip install it" in shown
    assert "builtin" in shown


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_control_c_ends_cleanly_with_complete_files(project):
    command = ["run", "hybrid.toml", "--out", "here", "--set", "run.steps=10000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hybridcore", *command],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )  # fmt: skip
    metrics = project / "here" / "metrics.jsonl"
    deadline = time.monotonic() + 30
    while not (metrics.exists() and "real-step" in metrics.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in out
    record = read_run(project / "here")
    assert record.summary["interrupted"] is True
    # The signal may arrive between a step and its record.
    assert record.summary["real_steps"] - record.steps[-1]["step"] in (0, 1)
    assert metrics.read_text().endswith("\n")
