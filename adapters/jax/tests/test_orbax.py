"""Checkpoints through orbax: shards stay shards, and resuming is bit for bit (F53, F71)."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import many_devices
import pytest
from test_many_devices import answer, start

pytest.importorskip("orbax.checkpoint")

PROGRAM = Path(__file__).with_name("orbax_devices.py")


def test_f53_sharded_state_resumes_bit_for_bit_and_damage_is_passed_over(tmp_path):
    found = answer(start("devices", tmp_path, devices=4, program=PROGRAM))
    assert found["devices"] == 4
    assert "not what was written" in found["refused"][0]
    assert "another run" in found["refused"][1]
    assert not found["written"]
    assert found["files"] == ["arrays-00000.safetensors", "manifest.json", "orbax", "state-00000.json"]


def two(*arguments):
    """Two processes with two devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mode, *rest = arguments
    return [start(mode, rank, port, *rest, devices=2, program=PROGRAM) for rank in range(2)]


def test_f71_two_processes_write_one_checkpoint_together_and_resume_bit_for_bit(tmp_path):
    first, second = map(answer, two("process", tmp_path))
    assert first == second
    assert {"manifest.json", "orbax", "state-00000.json"} <= set(first["files"])
    many_devices.agree(first["run"], many_devices.truth())


@pytest.mark.slow
def test_f53_f71_a_killed_process_ends_the_other_and_new_ones_end_as_if_nothing_had_happened(tmp_path):
    """Killed in a checkpoint, which the first process leads, then in a step, after another checkpoint."""
    for life, victim, begin in (("writing", 0, 0), ("step", 1, 12)):
        programs = two("mortal", tmp_path, life)
        told = [program.communicate(timeout=300) for program in programs]  # a process that hangs ends here
        assert programs[victim].returncode == -signal.SIGKILL, told[victim][1]
        out, errors = told[1 - victim]
        assert programs[1 - victim].returncode not in (0, -signal.SIGKILL)
        assert "Gloo" in errors or "distributed service detected fatal errors" in errors, errors
        assert re.findall(r"start at batch (\d+)", out) == [str(begin)]
    found = list(map(answer, two("mortal", tmp_path, "long")))
    assert found[0] == found[1]
    killed, calm = found[0]["killed"], found[0]["calm"]
    assert (killed["start"], calm["start"]) == (24, 0)
    assert killed["losses"] == calm["losses"][24:]
    assert killed["weights"] == calm["weights"]
    assert killed["decisions"] == calm["decisions"][-len(killed["decisions"]) :]
    assert [row[2] for row in killed["decisions"] if row[0] == "verdict"][:1] == [
        False
    ]  # begun before the kill
