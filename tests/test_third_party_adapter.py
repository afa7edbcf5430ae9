"""A framework in a distribution of its own: built, installed, listed and trained (F19, F88)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_third_party_plugin import call, hybridcore

EXAMPLE = Path(__file__).parents[1] / "examples" / "adapter-sklearn"

CONFIG = """
[run]
steps = 200
seed = 0
framework = "sklearn"
evaluate_every = 100

[task]
name = "hybridcore_example_sklearn.task:digits"
learning_rate = 0.005

[phases]
warmup_steps = 20
full_steps = 20

[budget]
share = 1.0
grace_steps = 10000.0

[controller]
name = "fixed"

[controller.fixed]
horizon = 10.0

[predictor]
name = "drift"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example's wheel is built and installed."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("third-party")
    wheels, target = folder / "wheels", folder / "site"
    flags = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    build = ("-m", "pip", "wheel", *flags, "--no-build-isolation", "--wheel-dir", str(wheels), str(EXAMPLE))
    done = call(*build, cwd=folder)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("hybridcore_example_sklearn-*.whl")
    done = call("-m", "pip", "install", *flags, "--target", str(target), str(wheel), cwd=folder)
    assert done.returncode == 0, done.stderr
    return target


def test_it_is_unknown_before_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "hybrid.toml").write_text(CONFIG)
    done = hybridcore("run", "hybrid.toml", "--out", "run", cwd=tmp_path)
    assert done.returncode != 0
    assert not (tmp_path / "run").exists()


def test_listing_frameworks_imports_no_scikit_learn(site: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from hybridcore.frameworks import list_frameworks, load_framework\n"
        "assert 'sklearn' in [entry.name for entry in list_frameworks()]\n"
        "assert load_framework('sklearn').versions()['scikit-learn']\n"
        "assert 'sklearn' not in sys.modules\n"
    )
    done = call("-c", code, site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_configuration_that_names_it_trains_with_it(site: Path, tmp_path: Path) -> None:
    (tmp_path / "hybrid.toml").write_text(CONFIG)
    done = hybridcore("run", "hybrid.toml", "--out", "run", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["versions"]["scikit-learn"]
    assert any(r["event"] == "jump" for r in lines)
    assert any(r["event"] == "verdict" for r in lines)
    accuracies = [r["accuracy"] for r in lines if r["event"] == "evaluation"]
    assert accuracies[0] < 0.5
    assert accuracies[-1] > 0.8


def test_its_own_tests_pass_against_the_installed_wheel(site: Path, tmp_path: Path) -> None:
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"))
    done = call(*tests, site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
