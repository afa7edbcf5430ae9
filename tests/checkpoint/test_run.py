"""F53: a run that was stopped and resumed leaves the same record and the same weights as one that was not."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading

import attrs
import numpy as np
import pytest

from hybridcore.checkpoint.files import read
from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.config import CheckpointConfig
from hybridcore.configfile import config_from_dict
from hybridcore.errors import CheckpointError
from hybridcore.plugins import load_registry
from hybridcore.runner import run_task
from hybridcore.testing import without_clock

REGISTRY = load_registry()


class Stop(BaseException):
    """Ends a run in the middle of a batch."""


def config(every=7, **tables):
    base = {
        "run": {"steps": 90, "framework": "numpy", "evaluate_every": 20},
        "task": {"name": "logistic"},
        "phases": {"warmup_steps": 5, "full_steps": 5},
        "average": {"enabled": True},
        "checkpoint": {"every": every, "asynchronous": False},
    }
    for name, table in tables.items():
        base[name] = {**base.get(name, {}), **table}
    return config_from_dict(base)


def stopping(at):
    """A listener that ends the run at a real step."""

    def listen(event, payload):
        if event.value == "real-step" and payload["step"] == at:
            raise Stop

    return listen


def interrupted(folder, made, at=50, arm="hybrid"):
    with pytest.raises(Stop):
        run_task(made, arm=arm, out_dir=folder, registry=REGISTRY, progress=stopping(at))


def record(folder):
    """The record without what a clock wrote into it."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [without_clock(line) for line in lines]


def weights(folder, name="average"):
    return (folder / "checkpoints" / f"{name}.safetensors").read_bytes()


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth") / "run"
    run_task(config(every=0), out_dir=folder, registry=REGISTRY)
    return record(folder)


def test_checkpoints_change_nothing(tmp_path, truth):
    run_task(config(), out_dir=tmp_path / "run", registry=REGISTRY)
    assert record(tmp_path / "run") == truth


@pytest.mark.parametrize("at", [9, 33, 89])
def test_resumed_run_leaves_the_same_record(tmp_path, truth, at):
    folder = tmp_path / "run"
    interrupted(folder, config(), at)
    result = run_task(config(), out_dir=folder, registry=REGISTRY, resume=True)
    assert record(folder) == truth
    assert [e.step for e in result.evaluations] == [0, 20, 40, 60, 80, 90]
    run_task(config(), out_dir=tmp_path / "whole", registry=REGISTRY)
    for name in ("average", "best"):
        assert weights(folder, name) == weights(tmp_path / "whole", name)


@pytest.mark.parametrize("arm", ["baseline", "reshuffled"])
def test_the_plain_loop_resumes_too(tmp_path, arm):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run_task(config(), arm=arm, out_dir=whole, registry=REGISTRY)
    interrupted(folder, config(), 60, arm=arm)
    run_task(config(), arm=arm, out_dir=folder, registry=REGISTRY, resume=True)
    assert record(folder) == record(whole)


def test_a_second_interruption_is_survived(tmp_path, truth):
    folder = tmp_path / "run"
    interrupted(folder, config(), 30)
    with pytest.raises(Stop):
        run_task(config(), out_dir=folder, registry=REGISTRY, progress=stopping(60), resume=True)
    run_task(config(), out_dir=folder, registry=REGISTRY, resume=True)
    assert record(folder) == truth


def test_asynchronous_writing_gives_the_same_files(tmp_path):
    made = [config(checkpoint={"asynchronous": flag}) for flag in (False, True)]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, one in zip(folders, made, strict=True):
        interrupted(folder, one, 50)
    paths = [CheckpointStore(folder / "checkpoints").paths() for folder in folders]
    assert [p.name for p in paths[0]] == [p.name for p in paths[1]] != []
    one, other = (read(p[-1]).arrays for p in paths)
    assert {k: a.tobytes() for k, a in one.items()} == {k: a.tobytes() for k, a in other.items()}


def test_f54_damaged_checkpoints_are_passed_over_with_a_warning(tmp_path, truth, caplog):
    folder = tmp_path / "run"
    interrupted(folder, config())
    newest = CheckpointStore(folder / "checkpoints").paths()[-1]
    path = newest / "arrays.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING, "hybridcore"):
        run_task(config(), out_dir=folder, registry=REGISTRY, resume=True)
    assert f"checkpoint {newest.name} is passed over" in caplog.text
    assert record(folder) == truth


def truncate(path):
    os.truncate(path / "state.json", 100)


def flip(path):
    content = bytearray((path / "manifest.json").read_bytes())
    content[len(content) // 3] ^= 1
    (path / "manifest.json").write_bytes(bytes(content))


def empty(path):
    for file in path.iterdir():
        file.unlink()


def rewritten(**changes):
    def rewrite(path):
        text = json.loads((path / "manifest.json").read_text())
        text.pop("sha256")
        text["belongs_to"] |= changes.get("belongs_to", {})
        text["format"] = changes.get("format", text["format"])
        seal = hashlib.sha256(json.dumps(text, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        (path / "manifest.json").write_text(json.dumps({**text, "sha256": seal}))

    return rewrite


@pytest.mark.parametrize(
    "damage, named",
    [
        (truncate, "not what was written"),
        (flip, "damaged"),
        (empty, "cannot be read"),
        (rewritten(format=2), "pip install --upgrade hybridcore"),
        (rewritten(belongs_to={"model": "0" * 64}), "model = "),
    ],
    ids=["truncated", "flipped", "empty", "newer version", "another model"],
)
def test_f54_the_older_one_is_used_and_without_one_the_error_is_typed(tmp_path, truth, caplog, damage, named):
    folder = tmp_path / "run"
    interrupted(folder, config())
    paths = CheckpointStore(folder / "checkpoints").paths()
    damage(paths[-1])
    with caplog.at_level(logging.INFO, "hybridcore"):
        run_task(config(), out_dir=folder, registry=REGISTRY, resume=True)
    assert f"checkpoint {paths[-1].name} is passed over" in caplog.text and named in caplog.text
    assert f"going on from {paths[-2]}" in caplog.text
    assert record(folder) == truth
    for path in CheckpointStore(folder / "checkpoints").paths():
        damage(path)
    with pytest.raises(CheckpointError):
        run_task(config(), out_dir=folder, registry=REGISTRY, resume=True)


def test_f54_rotation_keeps_the_newest(tmp_path):
    interrupted(tmp_path / "run", config(checkpoint={"keep": 2}), 50)
    paths = CheckpointStore(tmp_path / "run" / "checkpoints").paths()
    assert [p.name for p in paths] == ["batch-000000042", "batch-000000049"]


def test_f54_the_directory_is_configurable(tmp_path, truth):
    made = config(checkpoint={"directory": str(tmp_path / "safe")})
    interrupted(tmp_path / "runs" / "one", made)
    assert not (tmp_path / "runs" / "one" / "checkpoints").exists()
    assert CheckpointStore(tmp_path / "safe" / "runs-one").paths()
    run_task(made, out_dir=tmp_path / "runs" / "one", registry=REGISTRY, resume=True)
    assert record(tmp_path / "runs" / "one") == truth


@pytest.mark.parametrize(
    "change, named",
    [
        ({"run": {"seed": 3}}, "config.run.seed = 0"),
        ({"history": {"window": 3}}, "config.history.window = 10"),
        ({"task": {"learning_rate": 0.5}}, "config.task.learning_rate"),
    ],
)
def test_another_configuration_is_refused_by_name(tmp_path, change, named):
    interrupted(tmp_path / "run", config(), 20)
    with pytest.raises(CheckpointError, match="another run") as caught:
        run_task(config(**change), out_dir=tmp_path / "run", registry=REGISTRY, resume=True)
    assert named in str(caught.value)


def test_the_checkpoints_of_another_run_are_refused(tmp_path):
    for name in ("one", "two"):
        interrupted(tmp_path / name, config(), 20)
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines(keepends=True)
    changed = {**json.loads(lines[0]), "time": "2001-01-01T00:00:00+00:00"}
    (tmp_path / "two" / "metrics.jsonl").write_text("".join([json.dumps(changed) + "\n", *lines[1:]]))
    with pytest.raises(CheckpointError, match="another run"):
        run_task(config(), out_dir=tmp_path / "two", registry=REGISTRY, resume=True)


def test_a_shortened_record_is_refused(tmp_path):
    interrupted(tmp_path / "run", config(), 20)
    os.truncate(tmp_path / "run" / "metrics.jsonl", 4000)
    with pytest.raises(CheckpointError, match="shorter than at the checkpoint"):
        run_task(config(), out_dir=tmp_path / "run", registry=REGISTRY, resume=True)


def test_without_a_checkpoint_there_is_a_typed_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        run_task(config(), out_dir=tmp_path / "run", registry=REGISTRY, resume=True)


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path):
    interrupted(tmp_path / "run", config(), 20)
    with pytest.raises(CheckpointError, match="an earlier run"):
        run_task(config(), out_dir=tmp_path / "run", registry=REGISTRY)


def test_best_weights_are_those_of_the_lowest_validation_loss(tmp_path):
    from safetensors.numpy import load_file

    seen = {}

    def listen(event, payload):
        if event.value == "evaluation":
            seen[payload["loss"]] = payload["step"]

    run_task(config(average={"enabled": False}), out_dir=tmp_path / "run", registry=REGISTRY, progress=listen)
    best = load_file(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert {k: v.shape for k, v in best.items()} == {"weight": (10, 64), "bias": (10,)}
    from hybridcore.tasks.building import build_task

    task = build_task(config(), REGISTRY)
    for name, value in best.items():
        task.adapter.params[name][...] = value
    assert task.evaluate()["loss"] == min(seen)
    assert not (tmp_path / "run" / "checkpoints" / "average.safetensors").exists()


def test_average_file_holds_the_average(tmp_path):
    from safetensors.numpy import load_file

    result = run_task(config(), out_dir=tmp_path / "run", registry=REGISTRY)
    from hybridcore.tasks.building import build_task

    task = build_task(config(), REGISTRY)
    for name, value in load_file(tmp_path / "run" / "checkpoints" / "average.safetensors").items():
        task.adapter.params[name][...] = value
    assert np.isclose(task.evaluate()["loss"], result.evaluations[-1].metrics["averaged_loss"], rtol=1e-12)


def test_newer_checkpoints_than_the_one_used_are_set_aside(tmp_path):
    folder = tmp_path / "run"
    interrupted(folder, config())
    store = CheckpointStore(folder / "checkpoints")
    newest = store.paths()[-1]
    shutil.copytree(newest, newest.with_name("batch-000000700"))
    (newest.with_name("batch-000000700") / "state.json").unlink()
    run_task(config(), out_dir=folder, registry=REGISTRY, resume=True)
    assert "batch-000000700" not in [p.name for p in store.paths()]
    assert (folder / "checkpoints" / "set-aside-batch-000000700").is_dir()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_f57_asynchronous_writing_leaves_the_training_thread(tmp_path, monkeypatch, asynchronous):
    threads, write = set(), CheckpointStore.write

    def watched(store, contents):
        threads.add(threading.current_thread() is threading.main_thread())
        return write(store, contents)

    monkeypatch.setattr(CheckpointStore, "write", watched)
    run_task(config(checkpoint={"asynchronous": asynchronous}), out_dir=tmp_path / "run", registry=REGISTRY)
    assert threads == {not asynchronous}


def test_f57_every_field_is_tried():
    assert {f.name for f in attrs.fields(CheckpointConfig)} == {"every", "keep", "directory", "asynchronous"}
