"""Roll-out of an ensemble that lives on the host: one copy there, one launch, one copy back."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridcore.kernels.rollout import sizes_of
from hybridcore.protocols import Ensemble
from hybridcore_cupy.device import kernel, launch, load_cupy
from hybridcore_cupy.structs import LAYERS, Rollout

__all__ = ["rollout"]

NAMES = ("embed", "posterior", "enter", "gru_x", "gru_h", "prior_in", "prior_out", "trunk", "head")
"""Layers in the order of rollout.cu."""

SHARED_BYTES = 48 * 1024
"""What every device gives a block without being asked."""

TO_DEVICE, TO_HOST = 1, 2
"""``cudaMemcpyKind``."""


class _Place:
    """Page-locked memory and its image on one device, which hold weights, arguments and results in turn.

    Its stream waits for no other, so that a forecast does not queue behind training steps.
    """

    def __init__(self) -> None:
        self.stream = load_cupy().cuda.Stream(non_blocking=True)
        self._room = 0
        self._models: Callable[[], Ensemble | None] = lambda: None

    def make_room(self, count: int) -> None:
        """Room for so many float32 numbers; what was there is lost where it has to grow."""
        if count > self._room:
            cuda = load_cupy().cuda
            self._room = count + count // 2
            self._pinned = cuda.alloc_pinned_memory(4 * self._room)
            self._image = cuda.alloc(4 * self._room)
            self.host: NDArray[np.float32] = np.frombuffer(self._pinned, np.float32, self._room)
            self._models = lambda: None

    def address(self, offset: int) -> int:
        """Address of a number on the device."""
        return int(self._image.ptr) + 4 * offset

    def holds(self, models: Ensemble) -> bool:
        """Whether the device has these weights."""
        return self._models() is models

    def sent(self, models: Ensemble) -> None:
        """The weights of `models` are on the device now."""
        self._models = weakref.ref(models)

    def copy(self, begin: int, end: int, kind: int) -> None:
        """Queue a copy of numbers."""
        here, there, size = int(self.host.ctypes.data) + 4 * begin, self.address(begin), 4 * (end - begin)
        to, source = (there, here) if kind == TO_DEVICE else (here, there)
        load_cupy().cuda.runtime.memcpyAsync(to, source, size, kind, self.stream.ptr)


class _Places(threading.local):
    def __init__(self) -> None:
        self.found: dict[int, _Place] = {}


_places = _Places()


def rollout(
    models: Ensemble,
    features: NDArray[Any],
    actions: NDArray[Any],
    ahead: NDArray[Any],
    noise: NDArray[Any],
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Steps and raw log variances on the current device; None where the kernel does not serve.

    It serves float32 arrays of NumPy whose state fits into a block's shared memory. See
    `hybridcore.protocols.KernelSet.rollout` for shapes.
    """
    weights = [models.weights[name] for name in NAMES]
    biases = [models.weights[bias_of(name)] for name in NAMES]
    given = [features, actions, ahead, noise]
    if not all(isinstance(a, np.ndarray) and a.dtype == np.float32 for a in (*weights, *biases, *given)):
        return None
    sizes = sizes_of(models)
    count, context = features.shape[0], features.shape[1] - 1
    draws, members, rows, latent = noise.shape
    horizon = draws - 1 - 2 * context
    numbers = 7 * sizes.deterministic + 3 * latent + sizes.features + sizes.actions + 3 * sizes.hidden
    if 4 * numbers > SHARED_BYTES or horizon < 1 or not rows:
        return None
    device = int(load_cupy().cuda.runtime.getDevice())
    if device not in _places.found:
        _places.found[device] = _Place()
    place = _places.found[device]
    kept = [*weights, *biases]
    starts = _starts([a.size for a in (*kept, *given)])
    results, paths = starts[-1], members * rows
    end = results + 2 * paths * horizon
    place.make_room(end)
    begin = starts[len(kept)] if place.holds(models) else 0
    for array, start in zip((*kept, *given), starts[:-1], strict=True):
        if start >= begin:
            place.host[start : start + array.size] = array.ravel()
    place.copy(begin, results, TO_DEVICE)
    block = Rollout()
    for index in range(LAYERS):
        block.layer[index] = place.address(starts[index])
        block.bias[index] = place.address(starts[LAYERS + index])
    names = ("features", "actions", "ahead", "noise", "steps")
    for name, start in zip(names, starts[2 * LAYERS :], strict=True):
        setattr(block, name, place.address(start))
    block.raws = place.address(results + paths * horizon)
    block.samples, block.context, block.horizon = rows // count, context, horizon
    block.seen, block.acted, block.width = sizes.features, sizes.actions, sizes.deterministic
    block.hidden, block.latent, block.classes = sizes.hidden, latent, models.classes
    function = kernel("rollout", "rollout")
    launch(function, (rows, members), block, int(place.stream.ptr), device, 4 * numbers)
    place.copy(results, end, TO_HOST)
    place.stream.synchronize()
    place.sent(models)
    found = place.host[results:end].reshape(2, members, rows, horizon).copy()
    return found[0], found[1]


def bias_of(name: str) -> str:
    """Name of a layer's bias."""
    return {"gru_x": "gru_bx", "gru_h": "gru_bh"}.get(name, f"{name}_b")


def _starts(sizes: Sequence[int]) -> list[int]:
    """Offsets of arrays of these sizes, each at a multiple of 128 bytes, and of what comes after them."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + (size + 31) // 32 * 32)
    return starts
