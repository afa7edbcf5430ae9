"""Arrays shared through DLPack: how long what a kernel reads is kept."""

from __future__ import annotations

import gc
import weakref
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from hybridcore_cupy import arrays


class View:
    """An array of the device that a framework has lent."""

    device = SimpleNamespace(id=0)
    data = SimpleNamespace(ptr=4096)


class Event:
    """A point of a stream that is not reached yet."""

    done = False

    def __init__(self, disable_timing):
        pass

    def record(self, stream):
        pass


@pytest.fixture
def lent(monkeypatch):
    """Weak references to the views that were handed out, and what the host waited for."""
    views, waited = [], []

    def from_dlpack(array):
        view = View()
        views.append(weakref.ref(view))
        return view

    def synchronize():
        waited.append(sum(view() is not None for view in views))

    stream = SimpleNamespace(ptr=0, synchronize=synchronize)
    cuda = SimpleNamespace(get_current_stream=lambda: stream, Event=Event)
    cupy = SimpleNamespace(
        ndarray=View, from_dlpack=from_dlpack, ascontiguousarray=lambda view: view, cuda=cuda
    )
    monkeypatch.setattr(arrays, "load_cupy", lambda: cupy)
    monkeypatch.setattr(arrays.DlpackArrays, "_pending", type(arrays.DlpackArrays._pending)())
    return views, waited


def read(name):
    access = arrays.DlpackArrays(np.zeros(3), ModuleType(name))
    assert access.pointer(np.zeros(3)) == 4096
    access.close()
    return access


def test_f67_what_jax_lends_is_kept_until_the_kernel_has_run_and_given_back_at_once(lent):
    views, waited = lent
    access = read("jax.numpy")
    gc.collect()
    # A step that donates must not find its state still lent, while the access itself may live on.
    assert waited == [2] and all(view() is None for view in views) and access.device == 0


def test_f67_what_cupy_lends_is_kept_while_the_kernel_runs_and_nobody_waits(lent):
    views, waited = lent
    read("cupy")
    gc.collect()
    assert waited == [] and all(view() is not None for view in views)
