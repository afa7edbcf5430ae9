"""Snapshots as NumPy arrays and plain data, and weights for other programs (F53)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from safetensors.flax import save_file

from hybridcore.errors import SnapshotError
from hybridcore.layout import ParamLayout
from hybridcore.protocols import ArrayRef
from hybridcore_jax.snapshot import JaxSnapshot
from hybridcore_jax.trees import named_leaves

__all__ = ["export", "is_key", "put_together", "rebuild", "take_apart", "to_plain"]


def is_key(leaf: Any) -> bool:
    """Whether it is an array of typed random keys."""
    return isinstance(leaf, jax.Array) and bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def to_plain(leaf: Any) -> NDArray[Any]:
    """The whole array in this process's memory; bfloat16 and the like as integers of the same bits."""
    host = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return host if host.dtype.kind in "biuf" else host.view(f"u{host.dtype.itemsize}")


def take_apart(snapshot: JaxSnapshot) -> tuple[dict[str, NDArray[Any]], Any]:
    """Leaves in the tree's own order; bfloat16 and the like as integers of the same bits."""
    arrays: dict[str, NDArray[Any]] = {}
    leaves = []
    for leaf in jax.tree.leaves(snapshot.state):
        if not isinstance(leaf, jax.Array | np.ndarray):
            leaves.append(leaf)
            continue
        key = str(len(arrays))
        arrays[key] = to_plain(leaf)
        leaves.append(ArrayRef(key, str(leaf.dtype)))
    return arrays, {"leaves": leaves, "updates": snapshot.updates, "factor": snapshot.factor}


def put_together(
    arrays: Mapping[str, NDArray[Any]], data: Any, layout: ParamLayout, like: Any
) -> JaxSnapshot:
    """The snapshot again, its leaves where those of the train state `like` are.

    Raises:
        SnapshotError: It does not fit the train state.
    """
    return rebuild(arrays, data, layout, like, {})


def rebuild(
    arrays: Mapping[str, NDArray[Any]],
    data: Any,
    layout: ParamLayout,
    like: Any,
    placed: Mapping[str, jax.Array],
) -> JaxSnapshot:
    """`put_together` where some leaves are known by ``["orbax", key, dtype]`` and `placed` already.

    Raises:
        SnapshotError: It does not fit the train state.
    """
    live, structure = jax.tree.flatten(like)
    try:
        pairs = zip(data["leaves"], live, strict=True)
        leaves = [_leaf(saved, current, arrays, placed) for saved, current in pairs]
        state = jax.tree.unflatten(structure, leaves)
        return JaxSnapshot(layout, state, int(data["updates"]), float(data["factor"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SnapshotError(
            f"a snapshot cannot be put together: {error}",
            where="snapshot_from_state",
            got=type(error).__name__,
            expected=f"{len(live)} leaves of this model and optimizer",
            fix="restore it with the optimizer it was taken with",
        ) from error


def _leaf(
    saved: Any, current: Any, arrays: Mapping[str, NDArray[Any]], placed: Mapping[str, jax.Array]
) -> Any:
    if isinstance(saved, list) and len(saved) == 3 and saved[0] == "orbax":
        found = placed[saved[1]]
        if is_key(current):
            found = jax.random.wrap_key_data(found, impl=jax.random.key_impl(current))
        if found.shape != current.shape or saved[2] != str(found.dtype):
            raise ValueError(f"{saved[2]} {found.shape} where {current.dtype} {current.shape} is needed")
        return found
    if not isinstance(saved, ArrayRef):
        return saved
    host = np.array(arrays[saved.key])
    if is_key(current):
        if saved.dtype != str(current.dtype):
            raise ValueError(f"a key of {saved.dtype} where {current.dtype} is needed")
        return jax.random.wrap_key_data(jnp.asarray(host), impl=jax.random.key_impl(current))
    dtype = jnp.dtype(saved.dtype)  # an optimizer may change the dtype of its state at its first step
    if host.dtype != dtype:
        host = host.view(dtype)
    if host.shape != current.shape:
        raise ValueError(f"shape {host.shape} where {current.shape} is needed")
    return jax.device_put(host, current.sharding) if isinstance(current, jax.Array) else host


def export(params: Any, path: str) -> None:
    """Write the parameters by their dotted names."""
    save_file({name: leaf for name, leaf in named_leaves(params) if isinstance(leaf, jax.Array)}, path)
