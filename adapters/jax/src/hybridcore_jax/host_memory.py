"""Arrays in pinned host memory, and what the device's allocator has left and had in use (F63, F66, F90)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from hybridcore.host_copies import PlainHostCopy
from hybridcore.layout import Buckets
from hybridcore.protocols import HostCopy
from hybridcore_jax.own_step import OwnStepRunner

__all__ = ["DevicePeak", "HostMemory", "JaxHostCopy", "away", "free_bytes", "home"]

_HOST, _DEVICE = "pinned_host", "device"


def _can_leave(array: Any) -> bool:
    """Whether an array is worth moving; single numbers and random keys stay where they are."""
    return (
        isinstance(array, jax.Array)
        and array.size > 1
        and not jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        and array.sharding.memory_kind != _HOST
    )


def _has_pinned(array: Any) -> bool:
    return all(_HOST in {m.kind for m in d.addressable_memories()} for d in array.sharding.device_set)


def _move(array: Any, kind: str) -> Any:
    return jax.device_put(array, array.sharding.with_memory_kind(kind), may_alias=False)


def away(tree: Any) -> Any:
    """The pytree with its arrays in pinned host memory, or NumPy's where the backend has none.

    Transfers are queued; nothing waits for them where memory is pinned.
    """
    return jax.tree.map(
        lambda x: x if not _can_leave(x) else _move(x, _HOST) if _has_pinned(x) else np.array(x), tree
    )


def home(tree: Any, like: Any) -> Any:
    """The pytree that `away` gave with what it moved on its devices again, in fresh arrays.

    Args:
        tree: What `away` gave.
        like: A pytree of the same structure; NumPy arrays go where its arrays are.
    """

    def back(leaf: Any, current: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return _move(leaf, _DEVICE) if leaf.sharding.memory_kind == _HOST else leaf
        if isinstance(leaf, np.ndarray) and isinstance(current, jax.Array):
            kind = current.sharding.with_memory_kind(_DEVICE) if _has_pinned(current) else current.sharding
            return jax.device_put(leaf, kind, may_alias=False)
        return leaf

    return jax.tree.map(back, tree, like)


def free_bytes(devices: Sequence[Any]) -> int | None:
    """Bytes that the fullest of the devices has left by its allocator's own count; None on the CPU."""
    found = [s["bytes_limit"] - s["bytes_in_use"] for d in devices if (s := d.memory_stats())]
    return int(min(found)) if found else None


class DevicePeak:
    """The most that the allocators of some devices had in use.

    JAX cannot let them count anew. A peak above all earlier ones of the process is exact; below that, the
    most that was in use at any call of `nbytes` is all that can be told.

    Args:
        devices: The devices.
    """

    def __init__(self, devices: Sequence[Any]) -> None:
        self._devices = tuple(devices)
        stats = [device.memory_stats() or {} for device in self._devices]
        self._before = [s.get("peak_bytes_in_use", 0) for s in stats]
        self._seen = [s.get("bytes_in_use", 0) for s in stats]

    def nbytes(self) -> int | None:
        """Bytes on the device where it is most; None on the CPU."""
        found = []
        for place, device in enumerate(self._devices):
            if stats := device.memory_stats():
                self._seen[place] = max(self._seen[place], stats["bytes_in_use"])
                peak = stats.get("peak_bytes_in_use", 0)
                found.append(max(self._seen[place], peak if peak > self._before[place] else 0))
        return int(max(found)) if found else None


class JaxHostCopy:
    """Copies of arrays in pinned host memory.

    Args:
        arrays: 1-D arrays, each on one device that has pinned host memory.

    Attributes:
        dtypes: Name of each array's dtype.
        homes: Name of each array's device.
    """

    def __init__(self, arrays: Buckets) -> None:
        self.dtypes = tuple(str(a.dtype) for a in arrays)
        self.homes = tuple(str(a.device) for a in arrays)
        self._kept = [_move(a, _HOST) for a in arrays]

    @property
    def nbytes(self) -> int:
        """Bytes of host memory."""
        return sum(int(a.nbytes) for a in self._kept)

    def back(self) -> Buckets:
        """Fresh arrays on their devices; the transfers are queued."""
        return tuple(_move(a, _DEVICE) for a in self._kept)

    def numpy(self) -> list[NDArray[Any]]:
        """Wait for the copies and give them, bfloat16 as float32."""
        arrays = [np.asarray(a) for a in self._kept]
        return [a.astype(np.float32) if a.dtype == jnp.bfloat16 else a for a in arrays]


class HostMemory:
    """What `JaxAdapter` can move out of the device's memory: snapshots, optimizer state, window means."""

    device: str
    _state: Any
    _access: Any
    _runner: Any
    _snapshots_away = False
    _optimizer_away = False
    _peak: DevicePeak | None = None

    def free_bytes(self) -> int | None:
        """Bytes that the allocator of the fullest of the model's devices has left, or None on the CPU."""
        return free_bytes(self._devices())

    def _devices(self) -> list[Any]:
        leaves = jax.tree.leaves(self._access.get(self._state, "params"))
        return sorted(leaves[0].sharding.addressable_devices, key=lambda d: d.id)

    def reset_peak(self) -> None:
        """Begin to watch what the allocators of the model's devices have in use (F90)."""
        self._peak = DevicePeak(self._devices())

    def peak_bytes(self) -> int | None:
        """Most bytes in use at once since `reset_peak`, the fullest device counting; None on the CPU."""
        return None if self._peak is None else self._peak.nbytes()

    def keep_snapshots(self, place: str) -> None:
        """Keep the snapshots to come on the ``"device"``, or in pinned ``"host"`` memory."""
        self._snapshots_away = place == "host"

    def to_host(self, arrays: Buckets) -> HostCopy:
        """Begin to copy arrays into pinned host memory; through NumPy where the backend has none."""
        return JaxHostCopy(arrays) if all(map(_has_pinned, arrays)) else PlainHostCopy(arrays, jnp)

    def offload_optimizer(self) -> None:
        """Free the device of the optimizer's state until something needs it again (F63).

        The state of a train step of the user's own stays: only that step knows what it may move.
        """
        if self._optimizer_away or isinstance(self._runner, OwnStepRunner):
            return
        held = self._access.get(self._state, "opt_state")
        self._state, self._optimizer_away = self._access.put(self._state, "opt_state", away(held)), True

    def _bring_back(self) -> None:
        """The optimizer's state on its device again, where it was away."""
        if self._optimizer_away:
            self._optimizer_away = False
            held = self._access.get(self._state, "opt_state")
            params = jax.tree.leaves(self._access.get(self._state, "params"))[0]
            like = jax.tree.map(lambda _: params, held)
            self._state = self._access.put(self._state, "opt_state", home(held, like))
