"""`hybridcore run --resume` and `hybridcore checkpoints` (F53, F54)."""

from __future__ import annotations

import pytest

from hybridcore.checkpoint.files import entries, seal
from hybridcore.checkpoint.manifest import Manifest
from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.cli import execute
from hybridcore.records import read_run

CONFIG = """
[run]
steps = 30
framework = "numpy"
evaluate_every = 10

[task]
name = "logistic"

[checkpoint]
every = 8
keep = 2
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "hybrid.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder):
    return [path.name for path in CheckpointStore(folder / "checkpoints").paths()]


def cut(folder):
    """Make a finished run look like one that was killed after its newest checkpoint."""
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-3]))
    (folder / "summary.json").unlink()


def losses(folder):
    return [(e.step, e.loss) for e in read_run(folder).evaluations]


@pytest.mark.parametrize("words", [["--resume", "one"], ["--out", "one", "--resume"]])
def test_run_resumes_in_the_named_folder(project, words, capsys):
    assert execute(["run", "hybrid.toml", "--out", "one"]) == 0
    expected = losses(project / "one")
    cut(project / "one")
    assert execute(["run", "hybrid.toml", *words]) == 0
    assert losses(project / "one") == expected
    assert (project / "one" / "summary.json").exists()


def test_run_resumes_the_latest_run_without_a_name(project, capsys):
    for _ in range(2):
        assert execute(["run", "hybrid.toml"]) == 0
    older, latest = sorted((project / "runs").iterdir())
    expected, untouched = losses(latest), (older / "metrics.jsonl").read_bytes()
    cut(latest)
    assert execute(["run", "hybrid.toml", "--resume"]) == 0
    assert losses(latest) == expected
    assert (older / "metrics.jsonl").read_bytes() == untouched


@pytest.mark.parametrize("words", [["--resume"], ["--resume", "nowhere"]])
def test_nothing_to_resume_is_an_error(project, words, capsys):
    assert execute(["run", "hybrid.toml", *words]) == 1
    assert "to go on" in capsys.readouterr().err


def test_injected_faults_cannot_be_resumed(project, capsys):
    assert execute(["run", "hybrid.toml", "--out", "one", "--inject", "nan@20"]) == 0
    assert not (project / "one" / "checkpoints").exists()
    assert execute(["run", "hybrid.toml", "--resume", "one", "--inject", "nan@20"]) == 1
    assert "cannot be resumed" in capsys.readouterr().err


def test_list_verify_and_prune(project, capsys):
    assert execute(["run", "hybrid.toml", "--out", "one"]) == 0
    assert names(project / "one") == ["batch-000000016", "batch-000000024"]
    capsys.readouterr()
    assert execute(["checkpoints", "list", "one"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[:3] for row in rows] == [
        ["batch-000000016", "16", "16"],
        ["batch-000000024", "24", "24"],
    ]
    assert execute(["checkpoints", "verify", "one"]) == 0
    assert capsys.readouterr().out.count("sound") == 2
    path = project / "one" / "checkpoints" / "batch-000000016" / "state.json"
    path.write_text(path.read_text().replace("1", "2", 1))
    assert execute(["checkpoints", "verify", "one/checkpoints"]) == 1
    assert "not what was written" in capsys.readouterr().out
    path.write_text(path.read_text().replace("2", "1", 1))
    assert execute(["checkpoints", "prune", "one"]) == 0
    assert names(project / "one") == ["batch-000000024"]
    assert execute(["checkpoints", "prune", "one", "--keep", "0"]) == 0
    assert execute(["checkpoints", "list", "one"]) == 1
    assert (project / "one" / "checkpoints" / "best.safetensors").exists()


def test_prune_keeps_a_sound_one_and_refuses_nonsense(project, capsys):
    """With the newest damaged, `--keep 1` must not remove the one that a run would go on from."""
    assert execute(["run", "hybrid.toml", "--out", "one", "--set", "checkpoint.keep=3"]) == 0
    newest = project / "one" / "checkpoints" / "batch-000000024"
    (newest / "manifest.json").unlink()
    capsys.readouterr()
    assert execute(["checkpoints", "list", "one"]) == 0
    assert "manifest.json of a checkpoint cannot be read: No such file" in capsys.readouterr().out
    assert execute(["checkpoints", "prune", "one", "--keep", "1"]) == 0
    assert names(project / "one") == ["batch-000000016", newest.name]
    assert f"kept {newest.name}: it is damaged" in capsys.readouterr().out
    assert execute(["checkpoints", "prune", "one", "--keep", "2"]) == 0
    assert execute(["checkpoints", "prune", "one", "--keep", "-3"]) == 1
    assert names(project / "one") == ["batch-000000016", newest.name]
    assert execute(["checkpoints", "list", "nowhere"]) == 1
    assert "there is no such folder" in capsys.readouterr().err


def test_prune_says_what_it_could_not_remove(project, capsys, monkeypatch):
    assert execute(["run", "hybrid.toml", "--out", "one"]) == 0

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("hybridcore.checkpoint.store.discard", refuse)
    capsys.readouterr()
    assert execute(["checkpoints", "prune", "one"]) == 1
    assert "removed" not in capsys.readouterr().out.replace("cannot be removed", "")
    assert len(names(project / "one")) == 2


def test_checkpoints_of_many_processes_are_listed_too(tmp_path, capsys):
    folder = tmp_path / ".unfinished-batch-000000007"
    folder.mkdir()
    (folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"x" * 100)
    manifest = Manifest(7, 7, entries(folder), {"arm": "hybrid"}, "0.1.0")
    seal(folder, tmp_path / "batch-000000007", manifest)
    assert execute(["checkpoints", "list", str(tmp_path)]) == 0
    assert execute(["checkpoints", "verify", str(tmp_path)]) == 0
    assert "batch-000000007: sound" in capsys.readouterr().out
