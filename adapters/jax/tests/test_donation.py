"""What is compiled how often, and whose memory is used again (F60, F64)."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager

import jax
import many_devices
import numpy as np
import optax
import pytest
from jax_lab import data, flat, loss_fn, mlp

from hybridcore.events import Event
from hybridcore_jax import JaxAdapter

TRACE = "/jax/core/compile/jaxpr_trace_duration"


def make(donate, optimizer=None):
    return JaxAdapter(
        mlp(), optimizer or optax.sgd(0.05, momentum=0.5), loss_fn, learning_rate=0.05, donate=donate
    )


@contextmanager
def traces():
    """Names of what JAX traces meanwhile."""
    found = []

    def listen(event, duration, **about):
        if event == TRACE:
            found.append(about.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_the_counter_counts():
    with traces() as found:
        jax.jit(lambda x: x + 1.0)(np.float32(1.0))
    assert found


@pytest.mark.parametrize("donate", [False, True])
def test_f64_nothing_is_traced_after_the_first_cycles(donate):
    """Jumps, probes, verdicts and snapshots of later cycles reuse what is compiled."""
    hybrid = many_devices.attach(many_devices.PLAIN, many_devices.BATCHES[0], donate=donate)
    engine, kept = hybrid.engine, []
    engine.events.listen(
        lambda event, payload: kept.append(payload["kept"]) if event is Event.VERDICT else None
    )
    for batch in many_devices.BATCHES:
        hybrid.step(batch)
    assert {True, False} <= set(kept), "both ways that a cycle can end"
    before = engine.counts.jumps
    with traces() as found:
        for batch in many_devices.BATCHES:
            hybrid.step(batch)
        engine.adapter.restore(engine.adapter.snapshot())
    assert engine.counts.jumps >= before + 3
    assert not found


def test_a_jump_takes_the_memory_of_donated_weights_and_no_snapshots():
    plain, donated = make(False), make(True)
    delta = tuple(0.5 * bucket for bucket in plain.read_params())
    expected = 1.25 * flat(plain.params)
    for adapter in (plain, donated):
        point, held = adapter.snapshot(), jax.tree.leaves(adapter.params)
        start = flat(point.state.params)
        adapter.apply_delta(delta, 0.5)
        assert all(leaf.is_deleted() is (adapter is donated) for leaf in held)
        np.testing.assert_allclose(flat(adapter.params), expected, rtol=1e-6)
        adapter.restore(point)
        adapter.apply_delta(delta, 0.5)  # must not delete what the snapshot holds
        adapter.restore(point)
        assert np.array_equal(flat(adapter.params), start)
    assert not any(bucket.is_deleted() for bucket in delta)


def test_a_jump_leaves_arrays_alone_that_a_loop_or_a_step_of_ones_own_holds():
    adapter = make(True)
    params, opt_state = jax.tree.map(lambda x: x + 0.0, (adapter.params, adapter.opt_state))
    result = adapter.train_step(data()[0])
    adapter.adopt(params, opt_state, result)
    adapter.apply_delta(adapter.read_params(), 0.1)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    own = JaxAdapter(
        (params, opt_state), None, loss_fn, train_step=lambda state, batch: (state, 0.0), learning_rate=0.1
    )
    own.apply_delta(own.read_params(), 0.1)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_a_sum_that_others_still_read_is_left_alone(monkeypatch):
    """As on a GPU, where JAX refuses to donate what was handed out through DLPack."""
    adapter = make(False)
    into = adapter.read_params()

    def refuse(*args):
        raise ValueError("INVALID_ARGUMENT: Donation requested for buffer with external reference")

    monkeypatch.setattr("hybridcore_jax.buckets._add", refuse)
    found = adapter.add_params(into, 2.0, 3.0)
    np.testing.assert_allclose(flat(found), 5.0 * flat(into), rtol=1e-6)
    monkeypatch.setattr("hybridcore_jax.buckets._add", lambda *args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        adapter.add_params(into)


def test_the_weights_that_a_run_began_with_are_let_go():
    params = mlp()
    first = weakref.ref(params[0]["w"])
    adapter = JaxAdapter(params, optax.sgd(0.05), loss_fn, learning_rate=0.05, donate=True)
    del params
    gc.collect()
    assert first() is None
    assert adapter.train_step(data()[0]).loss > 0.0


def test_running_sums_are_kept_in_place():
    adapter = make(False)
    total = adapter.read_params()
    first = adapter.read_params()
    again = adapter.add_params(total, 2.0, 3.0)
    assert all(bucket.is_deleted() for bucket in total)
    np.testing.assert_allclose(flat(again), 5.0 * flat(first), rtol=1e-6)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(adapter.params))
