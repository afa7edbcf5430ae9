"""Tracker `tensorboard`: the event file holds the numbers of the run's own record."""

from __future__ import annotations

import struct
import sys

import pytest

from hybridcore.errors import PluginError
from hybridcore.records import read_run
from hybridcore.runner import run_task
from hybridcore.trackers.tensorboard import TensorBoard, TensorBoardConfig

pytest.importorskip("tensorboardX")


def scalars(folder):
    """Tag to {step: value}, read from the records (length, checksum, bytes, checksum) of the event files."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.glob("events.out.tfevents.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_the_curves_are_those_of_the_record(configuration, registry, tmp_path):
    table = {"tensorboard": {"directory": str(tmp_path / "board"), "step_every": 5}}
    run_task(configuration(trackers=table), out_dir=tmp_path / "run", registry=registry)
    (folder,) = (tmp_path / "board").iterdir()
    assert folder.name == "toy_problem-build-hybrid-seed0"
    drawn, run = scalars(folder), read_run(tmp_path / "run")
    steps = {e["step"]: e["loss"] for e in run.events if e["event"] == "real-step" and e["step"] % 5 == 0}
    assert drawn["train/loss"] == pytest.approx(steps, rel=1e-6) and len(steps) == 12
    assert drawn["validation/loss"] == pytest.approx({e.step: e.loss for e in run.evaluations}, rel=1e-6)
    jumps = {e["step"]: e["horizon"] for e in run.events if e["event"] == "jump"}
    assert drawn["prediction/horizon"] == pytest.approx(jumps, rel=1e-6) and jumps


def test_nothing_is_made_before_a_run_starts(tmp_path):
    tracker = TensorBoard(TensorBoardConfig(directory=str(tmp_path / "board")))
    tracker.on_event("jump", {"step": 1, "horizon": 2.0, "relative": 0.1})
    tracker.close()
    assert not (tmp_path / "board").exists()


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr("hybridcore.trackers.tensorboard.find_spec", lambda name: None)
    with pytest.raises(PluginError, match="tensorboardX") as caught:
        TensorBoard()
    assert "hybridcore[tensorboard]" in caught.value.fix
