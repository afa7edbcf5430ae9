"""Where the arrays of a train state lie."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

__all__ = ["beside", "local_parts", "to_host"]


def local_parts(leaf: jax.Array) -> list[Any]:
    """One shard for each different part of an array that this process holds; of copies the first.

    Every process has its own copy of a parameter that is copied to all, so that all compute alike.
    """
    found: dict[str, Any] = {}
    for shard in leaf.addressable_shards:
        index = str(shard.index)
        if index not in found or shard.replica_id < found[index].replica_id:
            found[index] = shard
    return list(found.values())


def to_host(array: jax.Array) -> NDArray[Any]:
    """The whole array in this process's memory; parts of other processes are fetched, by all at once."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def beside(state: Any, params: Any) -> Any:
    """The state with every array on the devices of the parameters.

    Arrays that lie elsewhere, such as step counts and random keys, are copied to all those devices.
    Otherwise the first compiled step would move them, and the second would be compiled again.
    """
    leaf = jax.tree.leaves(params)[0]
    devices = leaf.sharding.device_set
    if len(devices) == 1:
        return state if not leaf.committed else jax.device_put(state, leaf.sharding)
    mesh = getattr(leaf.sharding, "mesh", None)
    if mesh is None:
        return state
    spec: Any = jax.sharding.PartitionSpec
    everywhere = jax.sharding.NamedSharding(mesh, spec())
    return jax.tree.map(
        lambda x: x if x.sharding.device_set == devices else jax.device_put(x, everywhere), state
    )
