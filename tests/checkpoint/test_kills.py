"""F54: SIGKILL in every file operation of a write, and at random moments, loses no run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from hybridcore.checkpoint.files import Contents
from hybridcore.checkpoint.store import CheckpointStore

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import kills
from benchmarks.file_operations import watched

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture
def place():
    with kills.place() as name:
        yield Path(name)


def contents(batches):
    arrays = {"0": np.arange(batches, dtype=np.float32)}
    return Contents(batches, batches, {"arm": "hybrid"}, {"array": ["0"]}, arrays)


def points_of_a_write(folder):
    """Every moment at which writing a third checkpoint, which removes the first, could be cut off."""
    store, seen = CheckpointStore(folder, keep=2), []
    for batches in (1, 2):
        store.write(contents(batches))
    with watched(lambda *point: seen.append(point)):
        store.write(contents(3))
    return seen


def test_a_kill_at_every_point_of_a_write_leaves_the_older_ones(place):
    seen = points_of_a_write(place / "whole")
    assert {name for name, _ in seen} >= {
        "save_file",
        "write_text",
        "write_bytes",
        "fsync",
        "replace",
        "rmtree",
    }
    assert ("save_file", "half") in seen and ("rmtree", "half") in seen
    renamed = seen.index(("replace", "after"))
    for number in range(len(seen)):
        folder = place / str(number)
        store = CheckpointStore(folder, keep=2)
        for batches in (1, 2):
            store.write(contents(batches))
        child = os.fork()
        if child == 0:
            left = iter(range(number))

            def strike(*_, left=left):
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                with watched(strike):
                    store.write(contents(3))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, seen[number]
        found = [(path.name[-1], held.arrays["0"].tolist()) for path, held in store.sound()]
        assert found[0] == (("3", [0.0, 1.0, 2.0]) if number >= renamed else ("2", [0.0, 1.0])), seen[number]
        assert len(store.paths()) == len(found), "each folder that counts is a whole checkpoint"
        store.write(contents(4))
        assert [p.name[-1] for p in store.paths()][-1] == "4"
        assert sorted(p.name for p in folder.iterdir()) == [p.name for p in store.paths()], "no litter"


def test_killed_runs_end_like_the_one_that_was_not(place):
    outcome = kills.kill_runs(place, 16, seed=0, steps=20)
    assert outcome.kills == 16 and outcome.finished > 0
    assert outcome.checkpoint > 0 and outcome.record > 0 and outcome.torn > 0
    assert outcome.lost == outcome.different == 0
