"""What checkpoints of many processes have in common, on one process without a framework (F53, F54)."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from engine_lab import bowl, configure, drive

from hybridcore.checkpoint.files import verify
from hybridcore.checkpoint.together import SharedCheckpoints
from hybridcore.controllers.fixed import Fixed
from hybridcore.engine import Engine
from hybridcore.errors import CheckpointError
from hybridcore.predictors.last_update import LastUpdate


class Kept(SharedCheckpoints):
    """Keeps the number of batches in a file, and the engine's state in memory."""

    broken = None

    def __init__(self, folder, **options):
        engine = Engine(bowl(), configure(), Fixed(), {"last-update": LastUpdate()}, probes=[None])
        self.states, self.told = {}, []
        hybrid = SimpleNamespace(engine=engine, resumed=lambda: self.told.append("resumed"))
        super().__init__(hybrid, folder, **{"every": 2, "keep": 2, "rank": 0, "processes": 1} | options)
        self.engine = engine

    def _pack(self, state):
        def write(folder):
            if self.broken == "write":
                raise OSError("the disk is full")
            self.states[state["batches"]] = state
            (folder / "state.json").write_text(json.dumps(state["batches"]))

        return write

    def _verified(self, path):
        return verify(path, re.compile("state.json"))

    def _read(self, path):
        if self.broken == "read":
            raise ValueError("not what was written")
        return self.states[json.loads((path / "state.json").read_text())]

    def _from_first(self, value):
        return value

    def _everywhere(self, well):
        return well


def trained(folder, batches=6, **options):
    checkpoints = Kept(folder, **options)
    for done in range(1, batches + 1):
        drive(checkpoints.engine, 1)
        checkpoints.after_batch(done, extra={"seen": done})
    return checkpoints


def test_the_newest_are_kept_and_gone_on_from(tmp_path):
    checkpoints = trained(tmp_path)
    assert [path.name for path in checkpoints.store.paths()] == ["batch-000000004", "batch-000000006"]
    assert checkpoints.resume() == 6
    assert checkpoints.extra == {"seen": 6} and checkpoints.told == ["resumed"]


def test_a_damaged_one_is_passed_over(tmp_path, caplog):
    checkpoints = trained(tmp_path)
    (tmp_path / "batch-000000006" / "state.json").write_text("7")
    assert checkpoints.resume() == 4
    assert "batch-000000006 is passed over" in caplog.text


def test_one_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    checkpoints = trained(tmp_path)
    checkpoints.broken = "write"
    assert not checkpoints.save(8)
    assert "the disk is full" in caplog.text
    assert [path.name for path in checkpoints.store.paths()] == ["batch-000000004", "batch-000000006"]


@pytest.mark.parametrize("why", ["read", "processes"])
def test_a_run_never_begins_anew_over_checkpoints_that_it_cannot_use(tmp_path, why):
    checkpoints = trained(tmp_path)
    if why == "read":
        checkpoints.broken = "read"
    else:
        checkpoints = Kept(tmp_path, processes=2)
    with pytest.raises(CheckpointError, match="no checkpoint of this run is left"):
        checkpoints.resume()
    assert len(checkpoints.store.paths()) == 2


def test_an_empty_folder_is_a_new_run(tmp_path):
    assert Kept(tmp_path / "none").resume() == 0
