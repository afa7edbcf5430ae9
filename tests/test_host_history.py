"""F63, F51: window means in host memory: the same runs, counted where they lie."""

from __future__ import annotations

import mmap
import tracemalloc

import array_api_compat.numpy as xp
import numpy as np
import pytest
from engine_lab import bits, build, clouds, configure, drive

from hybridcore.config import HistoryConfig, MemoryConfig
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.errors import MemoryBudgetError
from hybridcore.history import NEEDS, History
from hybridcore.host_copies import PlainHostCopy
from hybridcore.layout import ParamLayout
from hybridcore.memory import Memory
from hybridcore.plugins import load_registry
from hybridcore.protocols import HostCopy, OptimizerSpec
from hybridcore.reference import quadratic

REGISTRY = load_registry()
READERS = sorted(n for n, p in REGISTRY.predictors.items() if "window-means" in p.needs)
MIB = 2**20


class Elsewhere(PlainHostCopy):
    """A copy in memory that no allocator of Python sees, as a card's host memory is none of the card's."""

    def __init__(self, arrays):
        super().__init__(arrays, xp)
        sizes = [max(a.nbytes, 1) for a in arrays]
        self._kept = [np.frombuffer(mmap.mmap(-1, n), np.uint8) for n in sizes]
        for into, array in zip(self._kept, arrays, strict=True):
            into[: array.nbytes] = array.view(np.uint8)
        self._kept = [k[: a.nbytes].view(a.dtype) for k, a in zip(self._kept, arrays, strict=True)]


class Card:
    """An adapter whose memory is what Python allocates, and whose weights walk at random."""

    name, device = "card", "card:0"
    free = None

    def __init__(self, size=2**16):
        self.layout = ParamLayout.plan([("w", (size,), "float32", "card:0", None)])
        self.rng, self.xp = np.random.default_rng(0), xp
        self.weights = self.rng.standard_normal(size).astype(np.float32)

    def step(self):
        self.weights += self.rng.standard_normal(1).astype(np.float32)

    def read_params(self, out=None):
        if out is None:
            return (self.weights.copy(),)
        out[0][...] = self.weights
        return out

    def add_params(self, into, weight=1.0, decay=1.0):
        np.multiply(into[0], np.float32(decay), out=into[0])
        into[0][...] += self.weights if weight == 1.0 else np.float32(weight) * self.weights
        return into

    def to_host(self, arrays):
        return Elsewhere(arrays)

    def free_bytes(self):
        return self.free

    def keep_snapshots(self, place):
        pass

    def offload_optimizer(self):
        pass


def history_on(card, place="host", needs=("window-means",), reserved=0, snapshots="device", **options):
    memory = Memory(card, MemoryConfig(history=place, snapshots=snapshots))
    return History(card.layout, xp, HistoryConfig(**options), set(needs), reserved, memory=memory)


def outcome(name, place, dtype="float32", **memory):
    adapter, batches, probes = clouds(optimizer=OptimizerSpec("momentum", 0.02))
    config = configure(memory={"history": place}, history={"dtype": dtype, "windows": 5, "window": 4})
    predictor = REGISTRY.predictors[name]()
    controller = Fixed(FixedConfig(horizon=6.0, full_steps=30, correct_steps=4))
    engine, recorder = build(adapter, config, controller, predictor, probes)
    drive(engine, 150, batches)
    return engine, recorder.trace(), bits(adapter.snapshot())


@pytest.mark.parametrize("name", READERS)
def test_f63_a_run_is_the_same_bit_for_bit(name):
    engine, *stays = outcome(name, "device")
    away, *goes = outcome(name, "host")
    assert goes == stays
    assert engine.counts.jumps or name == "gauss-newton", "nothing was read"
    assert away.history._means.host_bytes > 0 == engine.history._means.host_bytes


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_f63_so_is_one_with_encoded_means(dtype):
    engine, *stays = outcome("drift", "device", dtype)
    _, *goes = outcome("drift", "host", dtype)
    assert goes == stays and engine.counts.jumps


@pytest.mark.parametrize("make", [lambda a: PlainHostCopy(a, xp), Elsewhere])
def test_a_copy_shares_no_memory(make):
    array = np.arange(5.0, dtype=np.float32)
    kept = make((array,))
    assert isinstance(kept, HostCopy) and kept.nbytes == 20 and kept.dtypes == ("float32",)
    array[:] = 7.0
    first, second = kept.back(), kept.back()
    first[0][:] = 9.0
    assert second[0].tolist() == kept.numpy()[0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert not np.shares_memory(second[0], kept.numpy()[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("needs", [{"window-means"}, NEEDS])
def test_f51_the_plan_holds_at_the_peak_of_the_cards_memory(needs, dtype):
    """With all means read, one after the other, after every window."""
    card = Card()
    history = history_on(card, needs=needs, window=3, windows=6, dtype=dtype)
    most = 0
    tracemalloc.start()
    for _ in range(40):
        history.before_step(card)
        card.step()
        history.after_step(card)
        if history.open_steps == 0:
            for mean in history.window_means:
                assert mean[0].shape == (2**16,)
                del mean
        most = max(most, history.bytes_in_use())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(history.window_means) == 6
    assert most <= history.planned_bytes()
    if dtype == "float32":
        assert peak <= history.planned_bytes() + 60_000  # encoding in NumPy takes work space of its own
        assert peak < history_on(card, "device", needs, window=3, windows=6).planned_bytes()
    assert history._means.host_bytes == 6 * {"float32": 4, "bfloat16": 2, "int8": 1 + 4 / 256}[dtype] * 2**16


def test_f51_more_windows_fit_the_cards_budget():
    card = Card(2**18)  # a copy of the weights is 1 MiB
    budget = {"windows": 9, "memory_budget_mib": 5.0}
    stays, goes = history_on(card, "device", **budget), history_on(card, "host", **budget)
    assert (stays.windows, goes.windows) == (3, 9)
    assert goes.planned_bytes() == 3 * MIB  # the sum, work space, and a mean that is read


def test_f51_host_memory_counts_where_the_model_lies_in_it():
    adapter = quadratic(seed=0)
    memory = Memory(adapter, MemoryConfig(history="host"))
    history = History(adapter.layout, xp, HistoryConfig(window=2), {"window-means"}, memory=memory)
    for _ in range(6):
        adapter.train_step(None)
        history.after_step(adapter)
    assert history.bytes_in_use() == 4 * adapter.layout.nbytes <= history.planned_bytes()
    assert history.planned_bytes() == 6 * adapter.layout.nbytes


def test_f51_the_error_names_what_to_lower():
    card = Card(2**18)

    def error(**options):
        with pytest.raises(MemoryBudgetError) as caught:
            history_on(card, memory_budget_mib=3.5, **options)
        return caught.value.fix

    everything = error(place="device", reserved=2 * MIB)
    for part in (
        "history.memory_budget_mib to 6",
        'memory.history to "host"',
        'memory.snapshots to "host"',
        'history.dtype to "int8"',
    ):
        assert part in everything
    less = error(place="host", snapshots="host", reserved=2 * MIB)
    assert "memory.history" not in less and "memory.snapshots" not in less
    history_on(card, "host", memory_budget_mib=3.5)  # as the first error says
    with pytest.raises(MemoryBudgetError) as caught:
        History(card.layout, xp, HistoryConfig(memory_budget_mib=0.5), {"window-means"})
    assert "host" not in caught.value.fix, "nobody said that there is an accelerator"


@pytest.mark.parametrize("place", ["device", "host"])
def test_f51_snapshots_that_leave_the_card_reserve_none_of_it(place):
    adapter, _, probes = clouds()
    adapter.device, size = "card:0", adapter.snapshot_nbytes()
    kept = []
    adapter.keep_snapshots = kept.append
    adapter.offload_optimizer = adapter.free_bytes = lambda: None
    adapter.snapshot_nbytes = lambda: 0 if kept == ["host"] else size
    config = configure(memory={"snapshots": place}, recovery={"snapshot_every": 0})
    engine, _ = build(adapter, config, probes=probes)
    alone = History(adapter.layout, xp, config.history, engine.history.needs).planned_bytes()
    assert engine.history.planned_bytes() - alone == (size if place == "device" else 0) and size > 0
