"""Where the arrays of a train state lie."""

from __future__ import annotations

from typing import Any

import jax

__all__ = ["beside"]


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
