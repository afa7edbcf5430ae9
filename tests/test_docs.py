"""The documentation is true: its blocks run, its links lead somewhere, its references are complete."""

from __future__ import annotations

import functools
import io
import re
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import attrs
import pytest
from documentation import PAGES, ROOT, blocks, name, needs_torch, run_blocks

from hybridcore import errors
from hybridcore.cli import execute
from hybridcore.config import HybridConfig
from hybridcore.configfile import structure_config
from hybridcore.events import Event
from hybridcore.plugins import load_registry

TABLES = set(attrs.fields_dict(HybridConfig))
REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p) and not needs_torch(p)], ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml")], ids=name)
def test_toml_blocks_are_sound(page: Path) -> None:
    for line, _, text in blocks(page, "toml"):
        data = tomllib.loads(text)
        if set(data) <= TABLES:
            _, problems = structure_config(data)
            assert not problems, f"{page}:{line}: {problems}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    """What `console` blocks call: options and sub-commands of hybridcore."""
    for line, _, text in blocks(page, "console"):
        for command in re.findall(r"^\$ hybridcore ([^\n#]*)", text, re.M):
            words = [w for w in command.split() if re.fullmatch(r"[a-z]+(-[a-z]+)*", w)]
            depth = 2 if words[0] in {"checkpoints", "config", "plugins"} else 1
            found = _help(*words[:depth])
            for option in re.findall(r"--[a-z]+", command):
                assert option in found, f"{page}:{line}: {command}"


def test_every_configuration_key_is_documented() -> None:
    """The page is generated, so that no key, default or range can be missing or out of date."""
    script = ROOT / "docs" / "make_configuration.py"
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    page = (REFERENCE / "configuration.md").read_text(encoding="utf-8")
    assert page == made, "run `python docs/make_configuration.py > docs/reference/configuration.md`"
    for table in attrs.fields(attrs.resolve_types(HybridConfig)):
        section = page.partition(f"## [{table.name}]")[2].partition("\n## ")[0]
        for field in attrs.fields(table.type):
            assert field.name == "options" or f"`{field.name}`" in section, f"{table.name}.{field.name}"


def test_every_event_is_documented() -> None:
    page = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `([a-z-]+)`", page, re.M)) == {event.value for event in Event}


def test_recorded_fields_are_documented(configuration, tmp_path: Path) -> None:
    """Of a run that jumps, keeps, fails and evaluates."""
    from hybridcore.records import read_run
    from hybridcore.runner import run_task

    config = configuration(
        verdict={"guard_factor": 1.0, "guard_z": 1.0},
        run={"steps": 200},
        controller={
            "name": "credit",
            "credit": {"window": 5, "probe_every": 1, "patience": 0, "growth": 3.0},
        },
    )
    result = run_task(config, out_dir=tmp_path / "run")
    page = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
    events = read_run(result.directory).events
    assert {"jump", "verdict", "probe", "rollback"} <= {event["event"] for event in events}
    for event in events:
        section = page.partition(f"### `{event['event']}`")[2].partition("\n### ")[0]
        own = {"examples"} if event["event"] == "evaluation" else set()  # a metric of the task
        for key in set(event) - {"event"} - own:
            assert f"`{key}`" in section, f"{event['event']}.{key}"


def test_every_error_is_documented() -> None:
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    kinds = [getattr(errors, n) for n in errors.__all__]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, errors.HybridCoreError):
            assert f"`{kind.__name__}`" in page, kind
    for action in errors.RecoveryAction:
        assert f"`{action.value}`" in page, action


def test_every_command_and_option_is_documented() -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    for command in (
        "run",
        "compare",
        "sweep",
        "report",
        "config init",
        "config check",
        "config show",
        "plugins list",
        "plugins show",
        "plugins check",
        "doctor",
    ):
        section = page.partition(f"## `hybridcore {command}")[2].partition("\n## ")[0]
        assert section, command
        for option in set(re.findall(r"--[a-z][a-z-]*", _help(*command.split()))) - {"--help", "--version"}:
            assert f"`{option}" in section, f"{command} {option}"


def test_every_builtin_class_is_named() -> None:
    page = (REFERENCE / "configuration.md").read_text(encoding="utf-8")
    for record in load_registry().records:
        if record.distribution == "hybridcore":
            for kind, registered in record.provides:
                assert f"`{registered}`" in page, f"{kind} {registered}"


@functools.cache
def _help(*command: str) -> str:
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as shown:
        patch.setenv("COLUMNS", "200")
        patch.setenv("NO_COLOR", "1")
        assert execute([*command, "--help"]) == 0, command
    return shown.getvalue()


def test_the_configuration_of_the_frameworks_page_is_the_example() -> None:
    page, example = ROOT / "docs" / "how-to" / "frameworks.md", ROOT / "examples" / "parity.toml"
    (shown,) = (text for _, _, text in blocks(page, "toml"))
    assert tomllib.loads(shown) == tomllib.loads(example.read_text(encoding="utf-8"))
