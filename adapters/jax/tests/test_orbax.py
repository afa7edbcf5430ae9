"""Checkpoints through orbax: shards stay shards, and resuming is bit for bit (F53, F71)."""

from __future__ import annotations

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


def test_f71_two_processes_write_one_checkpoint_together_and_resume_bit_for_bit(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    programs = [start("process", rank, port, tmp_path, devices=2, program=PROGRAM) for rank in range(2)]
    first, second = map(answer, programs)
    assert first == second
    assert {"manifest.json", "orbax", "state-00000.json"} <= set(first["files"])
    many_devices.agree(first["run"], many_devices.truth())
