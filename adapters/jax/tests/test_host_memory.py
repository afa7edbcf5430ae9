"""F63, F66, F90: snapshots, optimizer state and window means in pinned host memory; allocators' counts."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_lab import data, flat, loss_fn, mlp

from hybridcore.config import HistoryConfig
from hybridcore.configfile import config_from_dict
from hybridcore.memory import budget_bytes
from hybridcore.protocols import PeakMemoryAdapter
from hybridcore_jax import JaxAdapter, hybridize
from hybridcore_jax.host_memory import DevicePeak, JaxHostCopy, away, free_bytes, home

BATCHES = data(count=8)


def made(donate=True, optimizer=None):
    return JaxAdapter(mlp(), optimizer or optax.adam(1e-2), loss_fn, learning_rate=1e-2, donate=donate)


def kinds(tree):
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and x.size > 1}


def trained(memory, donate):
    """Predict phases of mode "step" with jumps; kinds of memory of the optimizer's state while they last."""
    config = config_from_dict(
        {
            "memory": memory,
            "phases": {"predict_mode": "step", "predict_steps": 4, "warmup_steps": 5, "full_steps": 5},
            "history": {"window": 2},
            "predictor": {"name": "spectral"},
            "controller": {"name": "fixed", "fixed": {"horizon": 4.0}},
            "budget": {"share": 1.0, "grace_steps": 1e3, "backoff_steps": 0, "count_seconds": False},
            "verdict": {"confidence_z": 1e6},
        }
    )
    run = hybridize(
        mlp(), optax.adam(1e-2), config, loss_fn=loss_fn, learning_rate=1e-2, probe=BATCHES[:1], donate=donate
    )
    losses, seen, most = [], set(), 0
    for index in range(40):
        predicted = not run.needs_backward
        losses.append(run.step(BATCHES[index % 8]))
        if predicted and not run.needs_backward:
            adapter = run.engine.adapter
            seen |= kinds(adapter._access.get(adapter._state, "opt_state"))
        most = max(most, run.engine.history._means.host_bytes)
    return losses, flat(run.params), run.finish(), seen, most


@pytest.mark.parametrize("donate", [False, True])
def test_a_run_is_the_same_bit_for_bit(donate):
    away = {"history": "host", "snapshots": "host", "offload_optimizer": True}
    stays, goes = trained({}, donate), trained(away, donate)
    assert goes[2]["jumps"] == stays[2]["jumps"] >= 2
    assert np.array_equal(stays[0], goes[0], equal_nan=True)
    assert np.array_equal(stays[1], goes[1])
    assert stays[3:] == ({"device"}, 0) and goes[3] == {"pinned_host"} and goes[4] > 0


@pytest.mark.parametrize(
    "use", ["train_step", "snapshot", "moments", "restore", "checkpoint", "learning_rate"]
)
def test_whatever_needs_the_optimizer_finds_it(use):
    plain, gone = made(), made()
    for adapter in (plain, gone):
        for batch in BATCHES[:3]:
            adapter.train_step(batch)
    kept = gone.snapshot()
    gone.offload_optimizer()
    gone.offload_optimizer()
    assert kinds(gone._state.opt_state) == {"pinned_host"} and kinds(gone.params) == {"device"}
    if use == "snapshot":
        gone.restore(gone.snapshot())
    elif use == "moments":
        assert gone.moments() == plain.moments()
    elif use == "restore":
        gone.restore(kept)
    elif use == "checkpoint":
        gone.restore(gone.snapshot_from_state(*gone.snapshot_state(gone.snapshot())))
    elif use == "learning_rate":
        assert gone.learning_rate == plain.learning_rate
        assert kinds(gone._state.opt_state) == {"pinned_host"}, "a rate needs no moments"
    for adapter in (plain, gone):
        for batch in BATCHES[3:6]:
            adapter.train_step(batch)
    assert np.array_equal(flat(plain.params), flat(gone.params))
    assert np.array_equal(flat(plain.opt_state), flat(gone.opt_state))


@pytest.mark.parametrize("donate", [False, True])
def test_snapshots_in_host_memory_come_back_bit_for_bit(donate):
    adapter = made(donate)
    adapter.keep_snapshots("host")
    for batch in BATCHES[:3]:
        adapter.train_step(batch)
    point, start = adapter.snapshot(), flat(adapter.train_state)
    assert kinds(point.state) == {"pinned_host"}
    for _ in range(2):
        for batch in BATCHES[3:6]:
            adapter.train_step(batch)
        assert not np.array_equal(flat(adapter.params), start[: flat(adapter.params).size])
        adapter.restore(point)
        assert np.array_equal(flat(adapter.train_state), start) and kinds(adapter.train_state) == {"device"}
    assert adapter.snapshot_nbytes() > 0, "the CPU's memory is where the model lies"
    adapter.device = "cuda:0"
    assert adapter.snapshot_nbytes() == 0


def test_an_array_and_its_host_copy_share_no_memory():
    arrays = (jnp.arange(4.0), jnp.ones(3, jnp.bfloat16), jnp.zeros(0, jnp.int8))
    kept = JaxHostCopy(arrays)
    places = {a.unsafe_buffer_pointer() for a in (arrays[0], kept._kept[0], kept.back()[0])}
    assert len(places) == 3
    arrays[0].delete()
    assert [a.tolist() for a in kept.back()] == [[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0], []]
    assert [a.dtype for a in kept.numpy()] == [np.float32, np.float32, np.int8]
    assert kept.dtypes == ("float32", "bfloat16", "int8") and kept.nbytes == 16 + 6


def test_without_pinned_memory_numpy_holds_the_arrays(monkeypatch):
    monkeypatch.setattr("hybridcore_jax.host_memory._has_pinned", lambda array: False)
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "step": jnp.asarray(3)}
    gone = away(tree)
    assert isinstance(gone["w"], np.ndarray) and gone["step"] is tree["step"]
    again = home(gone, tree)
    assert isinstance(again["w"], jax.Array) and np.array_equal(again["w"], tree["w"])
    assert again["w"].unsafe_buffer_pointer() != tree["w"].unsafe_buffer_pointer()
    kept = made().to_host((tree["w"].ravel(),))
    assert np.array_equal(kept.back()[0], np.arange(6.0))


def test_f66_the_fullest_device_tells_what_is_free():
    def device(limit, used):
        return SimpleNamespace(memory_stats=lambda: limit and {"bytes_limit": limit, "bytes_in_use": used})

    assert free_bytes([device(100, 30), device(100, 60)]) == 40
    assert free_bytes([device(None, 0)]) is None
    adapter = made()
    assert adapter.free_bytes() is None  # host memory, which the core knows
    adapter.free_bytes = lambda: 6_000
    assert budget_bytes(HistoryConfig(), adapter) == 3_000


def test_f90_the_peak_of_one_run_among_many_of_the_process():
    """JAX's own peak never falls: above it the number is exact, below it the largest that was seen."""
    stats = {"bytes_in_use": 100, "peak_bytes_in_use": 900}
    card = SimpleNamespace(memory_stats=lambda: dict(stats))
    peak = DevicePeak([card])
    assert peak.nbytes() == 100, "the peak of 900 was an earlier run's"
    stats["bytes_in_use"] = 400
    assert peak.nbytes() == 400
    stats["bytes_in_use"] = 200
    assert peak.nbytes() == 400
    stats["peak_bytes_in_use"] = 1_000  # between two calls
    assert peak.nbytes() == 1_000
    stats["bytes_in_use"] = 50
    other = SimpleNamespace(memory_stats=lambda: {"bytes_in_use": 600, "peak_bytes_in_use": 600})
    assert DevicePeak([card, other]).nbytes() == 600, "the fullest counts"
    assert DevicePeak([SimpleNamespace(memory_stats=lambda: None)]).nbytes() is None


def test_f90_on_the_cpu_the_core_counts():
    adapter = made()
    assert isinstance(adapter, PeakMemoryAdapter) and adapter.peak_bytes() is None
    adapter.reset_peak()
    assert adapter.peak_bytes() is None
