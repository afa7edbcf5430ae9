"""Batches and weights over several devices and processes take the decisions of one (F40-F43, F71, F72)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import many_devices
import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("many_devices.py")


def start(*arguments, devices=1, program=PROGRAM):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(program), *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(program):
    out, errors = program.communicate(timeout=600)
    assert program.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("count", [2, 4])
def test_f71_devices_of_one_process_repeat_the_run_of_one_device(count):
    """Data-parallel and parameter-sharded; jumps kept and taken back; resumed bit for bit."""
    found = answer(start("devices", devices=count))
    assert found["devices"] == count


def test_f72_two_processes_decide_alike_and_repeat_the_run_of_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    programs = [start("process", rank, port) for rank in range(2)]
    first, second = map(answer, programs)
    assert first == second  # every decision, loss and weight, to the last bit
    assert first["mean"] == (1.0 / 3.0 + (1.0 / 3.0 + 1.0)) / 2.0
    assert first["refused"] == ["up", "24 of 48 weights"]
    many_devices.agree(first["run"], many_devices.truth())
    bad, alone = first["bad"], many_devices.bad_batches(many_devices.PLAIN)
    assert bad["decisions"] == alone["decisions"] != many_devices.truth()[0]
    assert bad["skipped"] == alone["skipped"] == len(many_devices.BAD)
    assert bad["kept"] == [True] * len(many_devices.BAD)
    for found, wanted in zip(bad["weights"], alone["weights"], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
