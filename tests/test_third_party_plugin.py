"""A predictor in a distribution of its own: built, installed, listed, chosen and trained (F19, F88)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "predictor-plugin"

CONFIG = """
[run]
steps = 160
seed = 0
framework = "numpy"
evaluate_every = 40
directory = "runs"

[task]
name = "logistic"
learning_rate = 0.01

[phases]
warmup_steps = 20
full_steps = 20

[history]
window = 5

[budget]
share = 1.0
grace_steps = 10000.0  # no jump waits for the budget, whose seconds differ from run to run

[controller]
name = "fixed"

[controller.fixed]
horizon = 10.0

[predictor]
name = "{name}"

[predictor.ema-drift]
decay = 0.25

[plugins]
load = ["example-predictor"]
"""


def call(*command: str, site: Path | None = None, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a fresh process that finds installed distributions in `site` as well."""
    path = os.environ.get("PYTHONPATH", "")
    env = os.environ | ({"PYTHONPATH": os.pathsep.join(filter(None, [str(site), path]))} if site else {})
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True)


def hybridcore(*tokens: str, site: Path | None = None, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the `hybridcore` command."""
    return call("-c", "from hybridcore.cli import main; main()", *tokens, site=site, cwd=cwd)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example's wheel is built and installed."""
    folder = tmp_path_factory.mktemp("third-party")
    wheels, target = folder / "wheels", folder / "site"
    flags = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    build = ("-m", "pip", "wheel", *flags, "--no-build-isolation", "--wheel-dir", str(wheels), str(EXAMPLE))
    done = call(*build, cwd=folder)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("hybridcore_example_predictor-*.whl")
    done = call("-m", "pip", "install", *flags, "--target", str(target), str(wheel), cwd=folder)
    assert done.returncode == 0, done.stderr
    return target


def test_it_is_unknown_before_it_is_installed(tmp_path: Path) -> None:
    done = hybridcore("plugins", "list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ema-drift" not in done.stdout and "last-update" in done.stdout


def test_it_is_listed_shown_and_sound(site: Path, tmp_path: Path) -> None:
    done = hybridcore("plugins", "list", site=site, cwd=tmp_path)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["ema-drift", "predictor", "hybridcore-example-predictor", "0.1.0", "loaded"] in rows
    done = hybridcore("plugins", "show", "ema-drift", site=site, cwd=tmp_path)
    assert ["decay", "float", "0.5"] in [line.split() for line in done.stdout.splitlines()]
    done = hybridcore("plugins", "check", "example-predictor", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def train(tmp_path: Path, name: str, site: Path | None) -> subprocess.CompletedProcess[str]:
    (tmp_path / "hybrid.toml").write_text(CONFIG.format(name=name))
    return hybridcore("run", "hybrid.toml", site=site, cwd=tmp_path)


def records(tmp_path: Path) -> list[dict[str, object]]:
    (file,) = tmp_path.rglob("metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_configuration_that_names_it_trains_with_it(site: Path, tmp_path: Path) -> None:
    done = train(tmp_path, "ema-drift", site)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = records(tmp_path)
    jumps = [r for r in lines if r["event"] == "jump"]
    assert jumps and {r["predictor"] for r in jumps} == {"ema-drift"}
    losses = [float(str(r["loss"])) for r in lines if r["event"] == "evaluation"]
    assert losses[-1] < losses[0]


def test_installing_it_changes_no_run_that_does_not_name_it(site: Path, tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    config = CONFIG.split("[predictor]")[0] + '[predictor]\nname = "drift"\n'
    for folder, where in (("with", site), ("without", None)):
        (tmp_path / folder / "hybrid.toml").write_text(config)
        done = hybridcore("run", "hybrid.toml", site=where, cwd=tmp_path / folder)
        assert done.returncode == 0, done.stdout + done.stderr
    kept = ("event", "step", "loss", "predictor", "horizon", "relative")
    first, second = (
        [{k: r[k] for k in kept if k in r} for r in records(tmp_path / folder)]
        for folder in ("with", "without")
    )
    assert any(r["event"] == "jump" for r in first)
    assert first == second


def test_a_demanded_plugin_that_is_missing_stops_the_run(tmp_path: Path) -> None:
    done = train(tmp_path, "drift", None)
    assert done.returncode != 0
    assert "example-predictor" in done.stdout + done.stderr
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_its_own_tests_pass_against_the_installed_wheel(site: Path, tmp_path: Path) -> None:
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"))
    done = call(*tests, site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
