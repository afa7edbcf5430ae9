"""F54: a full disk, or a folder that cannot be written, costs checkpoints; never the run or older ones."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import attrs
import numpy as np
import pytest

from hybridcore.checkpoint.files import Contents
from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.config import CheckpointConfig
from hybridcore.configfile import config_from_dict
from hybridcore.errors import CheckpointError, MetricsError
from hybridcore.events import Event
from hybridcore.metrics import MetricsWriter
from hybridcore.plugins import load_registry
from hybridcore.records import read_run
from hybridcore.runfiles import write_json
from hybridcore.runner import run_task

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.file_operations import watched
from benchmarks.kills import end_of

REGISTRY = load_registry()


def contents(batches):
    arrays = {"0": np.arange(batches, dtype=np.float32)}
    return Contents(batches, batches, {"arm": "hybrid"}, {"array": ["0"]}, arrays)


def config(every=5, asynchronous=False):
    return config_from_dict(
        {
            "run": {"steps": 60, "framework": "numpy", "evaluate_every": 20},
            "task": {"name": "logistic"},
            "phases": {"warmup_steps": 5, "full_steps": 5},
            "average": {"enabled": True},
            "checkpoint": {"every": every, "asynchronous": asynchronous},
        }
    )


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth") / "run"
    run_task(config(), out_dir=folder, registry=REGISTRY)
    return end_of(folder)


def test_no_room_at_any_operation_leaves_the_older_one_and_no_litter(tmp_path):
    store, seen = CheckpointStore(tmp_path / "seen", keep=2), []
    store.write(contents(1))
    with watched(lambda *point: seen.append(point)):
        store.write(contents(2))
    assert len(seen) > 20
    renamed = seen.index(("replace", "after"))
    for number, (operation, moment) in enumerate(seen):
        if moment == "after" or operation == "rmtree":
            continue  # an operation fails before it is done, or half done; a removal needs no room
        folder = tmp_path / str(number)
        store = CheckpointStore(folder, keep=2)
        store.write(contents(1))
        left = iter(range(number))

        def strike(operation, _, left=left):
            if next(left, None) is None and operation != "rmtree":
                full()

        expected = [1, 2] if number > renamed else [1]
        with pytest.raises(CheckpointError, match="No space left"), watched(strike):
            store.write(contents(2))
        assert not list(folder.glob(".*")), seen[number]
        assert [held.batches for _, held in store.sound()] == expected[::-1], seen[number]
        store.write(contents(3))  # there is room again
        assert [held.batches for _, held in store.sound()] == [3, expected[-1]]
        assert sorted(p.name for p in folder.iterdir()) == [p.name for p in store.paths()]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_training_goes_on_through_a_full_disk_with_one_warning(tmp_path, truth, caplog, asynchronous):
    steps, store = [], CheckpointStore(tmp_path / "run" / "checkpoints")
    during = {}

    def listen(event, payload):
        if event is Event.REAL_STEP:
            steps.append(payload["step"])
            if payload["step"] == 38:
                during["sound"] = [held.batches for _, held in store.sound()]

    def strike(operation, moment):
        if operation != "rmtree" and moment != "after" and steps and 20 <= steps[-1] <= 40:
            full()

    with caplog.at_level(logging.WARNING, "hybridcore"), watched(strike):
        run_task(
            config(asynchronous=asynchronous), out_dir=tmp_path / "run", registry=REGISTRY, progress=listen
        )
    assert end_of(tmp_path / "run") == truth
    found = warnings(caplog)
    assert sum("no checkpoint of step" in text for text in found) == 1
    assert sum("weights cannot be written" in text for text in found) <= 1
    assert during["sound"] and max(during["sound"]) < 40, "the older ones stay"
    assert store.paths()[-1].name >= "batch-000000055", "room again, checkpoints again"
    left = [p.name for p in store.folder.iterdir() if p.name.startswith(".")]
    assert not left, left


def test_a_real_limit_of_the_system_leaves_only_whole_files(tmp_path):
    """No file may grow beyond 24 KiB: the record does, while its checkpoints still fit or do not."""
    folder = tmp_path / "run"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (24 << 10, 24 << 10))
            logging.getLogger("hybridcore").setLevel(logging.CRITICAL)
            result = run_task(config(), out_dir=folder, registry=REGISTRY)
            code = 0 if [e.step for e in result.evaluations] == [0, 20, 40, 60] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (folder / "metrics.jsonl").stat().st_size == 24 << 10
    record = read_run(folder)  # a cut-off last line is no damage
    assert [step["step"] for step in record.steps] == list(range(1, len(record.steps) + 1))
    store = CheckpointStore(folder / "checkpoints")
    assert len(list(store.sound())) == len(store.paths())
    assert not [p for p in folder.rglob("*") if p.name.startswith(".") or p.name.endswith(".part")]


def test_the_record_waits_in_memory_until_there_is_room(tmp_path, caplog):
    path = tmp_path / "m.jsonl"
    writer = MetricsWriter(path)
    writer(Event.RUN_START, {"schema": 1})
    file, writer._file = writer._file, Narrow(7)
    with caplog.at_level(logging.WARNING, "hybridcore"):
        for step in range(3):
            writer(Event.REAL_STEP, {"step": step})
            with pytest.raises(OSError, match="No space"):
                writer.sync()
    assert len(warnings(caplog)) == 1
    file.write(b"".join(writer._file.taken))  # what the disk took before it was full
    writer._file = file
    assert writer.sync() == path.stat().st_size
    writer.close()
    assert [json.loads(line).get("step") for line in path.read_text().splitlines()] == [None, 0, 1, 2]


class Narrow:
    """A file on a disk with room for a few bytes."""

    def __init__(self, room):
        self.room, self.taken = room, []

    def write(self, content):
        if not self.room:
            full()
        count, self.room = min(self.room, len(content)), max(0, self.room - len(content))
        self.taken.append(content[:count])
        return count


def test_lines_that_never_found_room_are_counted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("hybridcore.metrics._MOST_BYTES", 50)
    writer = MetricsWriter(tmp_path / "m.jsonl")
    writer(Event.RUN_START, {"schema": 1})
    file, writer._file = writer._file, Narrow(0)
    for step in range(10):
        writer(Event.REAL_STEP, {"step": step})
    writer._file = file
    with pytest.raises(OSError, match="lines of the record were lost"):
        writer.sync()  # such a record can have no checkpoint
    with caplog.at_level(logging.WARNING, "hybridcore"):
        writer.close()
    kept = len((tmp_path / "m.jsonl").read_text().splitlines()) - 1
    assert f"{10 - kept} lines of the record" in caplog.text and 0 < kept < 10


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MetricsError, match="cannot be written"):
        run_task(config(), out_dir=tmp_path / "file" / "run", registry=REGISTRY)
    with pytest.raises(MetricsError, match="cannot be written"):
        write_json(tmp_path / "file" / "summary.json", {})


@pytest.mark.parametrize("place", ["run", "checkpoints"])
def test_a_read_only_directory(place):
    """The run's own is refused before training; one for checkpoints costs these alone."""
    with tempfile.TemporaryDirectory() as name:  # where every user may look
        locked, free = Path(name) / "locked", Path(name) / "free"
        locked.mkdir()
        free.mkdir()
        free.chmod(0o777)
        locked.chmod(0o555)
        Path(name).chmod(0o755)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if os.geteuid() == 0:
                    os.seteuid(65534)  # root may write everywhere
                logging.getLogger("hybridcore").setLevel(logging.CRITICAL)
                made = attrs.evolve(config(), checkpoint=CheckpointConfig(every=5, directory=str(locked)))
                out = (locked if place == "run" else free) / "run"
                run_task(made, out_dir=out, registry=REGISTRY)
                code = 0
            except MetricsError as error:
                code = 3 if "Permission denied" in str(error) else 4
            finally:
                os._exit(code)
        expected = 3 if place == "run" else 0
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expected
        assert not list(locked.iterdir())
        assert place == "run" or read_run(free / "run").steps[-1]["step"] == 60


def test_no_folder_for_checkpoints_costs_the_checkpoints_alone(tmp_path, truth, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "hybridcore"):
        run_task(config(), out_dir=tmp_path / "run", registry=REGISTRY)
    assert sum("no checkpoint of step 5," in text for text in warnings(caplog)) == 1
    assert len(warnings(caplog)) == 3, "checkpoints, best and average weights, once each"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [e["loss"] for e in lines if e["event"] == "evaluation"] == [
        e["loss"] for e in truth[0] if e["event"] == "evaluation"
    ]


def test_a_failed_write_leaves_the_old_file_and_no_half_one(tmp_path):
    write_json(tmp_path / "summary.json", {"a": 1})
    for number in range(5):
        left = iter(range(number))

        def strike(_, moment, left=left):
            if moment != "after" and next(left, None) is None:
                full()

        with contextlib.suppress(MetricsError), watched(strike):
            write_json(tmp_path / "summary.json", {"a": 2})
        assert json.loads((tmp_path / "summary.json").read_text())["a"] in (1, 2)
        assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
