"""F63, F66: the memory budget, and what is said where an adapter cannot leave its device."""

from __future__ import annotations

import pytest

from hybridcore.config import HistoryConfig, MemoryConfig
from hybridcore.errors import ModelError
from hybridcore.memory import Memory, budget_bytes, free_host_bytes
from hybridcore.reference import quadratic


class OnDevice:
    """An adapter as far as memory goes."""

    name, device = "card", "cuda:0"

    def __init__(self, free=None):
        self.free, self.calls = free, []

    def free_bytes(self):
        return self.free

    def keep_snapshots(self, place):
        self.calls.append(place)

    def offload_optimizer(self):
        self.calls.append("offload")


class Bound:
    name, device = "bound", "cuda:0"


def test_the_budget_is_half_of_what_the_device_has_free():
    assert budget_bytes(HistoryConfig(), OnDevice(6_000)) == 3_000
    assert budget_bytes(HistoryConfig(memory_budget_mib=2.0), OnDevice(6_000)) == 2 * 2**20


def test_on_the_host_the_budget_is_half_of_its_free_memory():
    for adapter in (OnDevice(None), quadratic(seed=0), None):
        assert 0.2 < budget_bytes(HistoryConfig(), adapter) / (free_host_bytes() / 2) < 5.0
    assert 2**24 < free_host_bytes() < 2**50


def test_free_memory_is_told_where_there_is_no_proc(monkeypatch):
    known = free_host_bytes()
    monkeypatch.setattr("hybridcore.memory.Path.read_text", lambda *a: (_ for _ in ()).throw(OSError("none")))
    assert 2**20 < free_host_bytes() < 2 * known
    monkeypatch.setattr("hybridcore.memory.os.sysconf", lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert free_host_bytes() == 2 * 2**30


def test_the_adapter_hears_of_snapshots_at_once_and_of_the_optimizer_when_it_rests():
    adapter = OnDevice()
    Memory(adapter, MemoryConfig(snapshots="host")).optimizer_rests()
    assert adapter.calls == ["host"]
    Memory(adapter, MemoryConfig(offload_optimizer=True)).optimizer_rests()
    assert adapter.calls == ["host", "device", "offload"]


@pytest.mark.parametrize("config", [MemoryConfig(snapshots="host"), MemoryConfig(offload_optimizer=True)])
def test_an_adapter_that_cannot_leave_its_device_says_so(config):
    with pytest.raises(ModelError) as caught:
        Memory(Bound(), config)
    assert caught.value.where == "memory" and "'bound'" in str(caught.value)
    Memory(Bound(), MemoryConfig())
    Memory(quadratic(seed=0), config)  # all of it is in host memory already
