"""F90: the most memory that a run has at once, in the process and on its device."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from hybridcore import peaks
from hybridcore.peaks import PeakMemory, resident_bytes
from hybridcore.protocols import PeakMemoryAdapter
from hybridcore.reference import quadratic
from hybridcore.runner import run_task

MIB = 2**20
ARMS = ("baseline", "hybrid", "none")
needs_statm = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own count")


def kernel_resident():
    """What the kernel calls the resident set, from another file than the code under test reads."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@needs_statm
def test_resident_memory_is_what_the_kernel_says():
    assert resident_bytes() == pytest.approx(kernel_resident(), rel=0.02)


@needs_statm
def test_a_block_that_is_gone_again_counts_for_the_run_that_had_it_and_for_no_later_one():
    """The process's own high-water mark would give the second run the first one's peak."""

    def run(nbytes):
        with PeakMemory() as peak:
            if nbytes:
                block = np.ones(nbytes, np.uint8)
                time.sleep(4 * peaks._SECONDS)
                del block
            time.sleep(2 * peaks._SECONDS)
            return peak.summary()

    small, large, after = run(0), run(256 * MIB), run(0)
    grown = [found["resident_peak_bytes"] - found["resident_start_bytes"] for found in (small, large, after)]
    assert grown[0] < 32 * MIB and grown[2] < 32 * MIB
    assert grown[1] == pytest.approx(256 * MIB, abs=32 * MIB)
    assert after["resident_start_bytes"] < large["resident_peak_bytes"] - 200 * MIB
    assert {found["device_peak_bytes"] for found in (small, large, after)} == {None}


def test_without_proc_psutil_is_asked_and_without_both_nothing_is_claimed(monkeypatch, tmp_path):
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(peaks, "_STATM", tmp_path / "missing")
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    assert resident_bytes() is None
    with PeakMemory() as peak:
        assert set(peak.summary().values()) == {None}


class Card:
    """An adapter whose device's allocator has a peak that it cannot count anew, as JAX's."""

    name, device, capabilities = "card", "cuda:0", frozenset({"peak-memory"})

    def __init__(self):
        self.resets, self.used, self.most, self.fails = 0, 100, 0, False

    def reset_peak(self):
        self.resets, self.most = self.resets + 1, self.used

    def peak_bytes(self):
        if self.fails:
            raise RuntimeError("the device is lost")
        self.most = max(self.most, self.used)
        return self.most


def test_the_device_is_read_while_the_run_lasts_and_its_failure_ends_no_run(caplog):
    card = Card()
    assert isinstance(card, PeakMemoryAdapter)
    with PeakMemory() as peak:
        peak.follow(card)
        card.used = 5_000
        deadline = time.monotonic() + 30.0
        while card.most < 5_000:  # nobody but the thread asks
            assert time.monotonic() < deadline
            time.sleep(0.01)
        card.used = 200
        assert (card.resets, peak.summary()["device_peak_bytes"]) == (1, 5_000)
        card.fails = True
        assert peak.summary()["device_peak_bytes"] is None
    assert "the device is lost" in caplog.text


def test_an_adapter_without_the_capability_is_not_asked():
    with PeakMemory() as peak:
        peak.follow(quadratic(seed=0))
        assert peak.summary()["device_peak_bytes"] is None


@needs_statm
def test_every_arm_records_its_peak(tmp_path, registry, configuration, toy):
    original = toy.build

    def build(**options):
        task = original(**options)
        task.adapter.kept = np.ones(96 * MIB, np.uint8)  # an arm whose model is large
        return task

    small = {
        arm: run_task(configuration(), arm=arm, out_dir=tmp_path / arm, registry=registry) for arm in ARMS
    }
    toy.build = build
    large = run_task(configuration(), arm="baseline", out_dir=tmp_path / "large", registry=registry)
    again = run_task(configuration(), arm="hybrid", out_dir=tmp_path / "again", registry=registry)
    for result in (*small.values(), large, again):
        found = json.loads((result.directory / "summary.json").read_text())
        assert found["resident_peak_bytes"] == result.summary["resident_peak_bytes"]
        assert 0 < found["resident_start_bytes"] <= found["resident_peak_bytes"]
        assert found["device_peak_bytes"] is None
    before = max(result.summary["resident_peak_bytes"] for result in small.values())
    for result in (large, again):
        assert result.summary["resident_peak_bytes"] > before + 64 * MIB
    assert again.summary["resident_start_bytes"] < before + 32 * MIB, "the large arm before it is gone"
