"""`hybridcore plugins list|show|check`."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridcore.cli.plugins import app
from hybridcore.errors import PluginError


def run(*tokens: str) -> int:
    with pytest.raises(SystemExit) as done:
        app(list(tokens))
    return int(done.value.code or 0)


def put(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    info = folder / f"dist_{name}-2.0.dist-info"
    info.mkdir()
    (folder / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[hybridcore]\n{name} = {name}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_list_names_kind_origin_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["name", "kind", "distribution", "version", "status"]
    assert ["drift", "predictor", "hybridcore", "0.1.0", "loaded"] in rows
    assert ["threshold", "controller", "hybridcore", "0.1.0", "loaded"] in rows
    assert ["numpy", "framework", "hybridcore", "0.1.0", "installed"] in rows


def test_list_and_check_report_a_broken_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, monkeypatch, "cli_broken", "raise RuntimeError('no licence')")
    assert run("list") == 0
    shown = capsys.readouterr()
    assert "cli_broken  " in shown.out and "broken" in shown.out and "no licence" in shown.err
    assert run("check", "cli_broken") == 1
    assert "no licence" in capsys.readouterr().err
    assert run("check", "drift") == 0


def test_check_reports_a_misspelt_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from hybridcore import hookimpl\n@hookimpl\ndef hybridcore_taskss(): return []\n"
    put(tmp_path, monkeypatch, "cli_typo", code)
    assert run("check", "dist-cli_typo") == 1
    assert "did you mean 'hybridcore_tasks'" in capsys.readouterr().err


def test_show_tells_keys_types_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "drift") == 0
    out = capsys.readouterr().out
    assert "Continues the slow drift" in out and "[predictor.drift]" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["anchor", "str", "'iterate'"] in rows and ["pairs", "int", "1"] in rows


def test_show_says_when_there_are_no_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "last-update") == 0
    assert "No configuration keys." in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "check"])
def test_unknown_names_get_a_suggestion(command: str) -> None:
    with pytest.raises(PluginError, match="did you mean 'drift'"):
        app([command, "drfit"])


def test_check_of_one_adapter_counts_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "numpy") == 0
    assert "0 plugins, 0 classes, 1 adapters: all sound" in capsys.readouterr().out
