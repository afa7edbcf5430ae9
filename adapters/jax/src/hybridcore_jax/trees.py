"""Pytrees: names of leaves, copies, bytes, and whether two have one structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

__all__ = [
    "copy_tree",
    "device_name",
    "find_nodes",
    "has_field",
    "is_a",
    "map_nodes",
    "named_leaves",
    "tree_nbytes",
]

_copy_jitted = jax.jit(lambda leaves: [jnp.copy(x) for x in leaves])


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """``(dotted name, leaf)`` of every leaf, in the tree's own order.

    Example:
        >>> [name for name, _ in named_leaves({"layers": [{"w": 1.0}, {"w": 2.0}]})]
        ['layers.0.w', 'layers.1.w']
    """
    rows, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in rows]
    # Variables of flax nnx hold their array in `value`, which is nobody's name for a weight.
    return [(n.removesuffix(".value") or "value", leaf) for n, (_, leaf) in zip(names, rows, strict=True)]


def device_name(device: Any) -> str:
    """``"cpu"`` for the first CPU device, else platform and index such as ``"cuda:0"``."""
    platform = {"gpu": "cuda"}.get(device.platform, device.platform)
    return "cpu" if (platform, device.id) == ("cpu", 0) else f"{platform}:{device.id}"


def copy_tree(tree: Any) -> Any:
    """Copy of a pytree of arrays in memory of its own, shardings kept; other leaves are shared.

    Donating the original, or the copy, leaves the other one valid.
    """
    leaves, structure = jax.tree.flatten(tree)
    arrays = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    plain = all(len(leaves[i].sharding.device_set) == 1 for i in arrays)
    if plain and len({d for i in arrays for d in leaves[i].devices()}) <= 1:
        copies = _copy_jitted([leaves[i] for i in arrays])
    else:
        copies = [jnp.copy(leaves[i]) for i in arrays]
    for index, copy in zip(arrays, copies, strict=True):
        leaves[index] = copy
    return jax.tree.unflatten(structure, leaves)


def tree_nbytes(tree: Any) -> int:
    """Bytes of all arrays in a pytree."""
    return sum(int(x.nbytes) for x in jax.tree.leaves(tree) if hasattr(x, "nbytes"))


def has_field(*fields: str) -> Callable[[Any], bool]:
    """Test for named tuples with one of these fields."""
    wanted = set(fields)
    return lambda node: isinstance(node, tuple) and not wanted.isdisjoint(getattr(node, "_fields", ()))


def is_a(kind: type) -> Callable[[Any], bool]:
    """Test for nodes of one type."""
    return lambda node: isinstance(node, kind)


def find_nodes(tree: Any, test: Callable[[Any], bool]) -> Iterator[Any]:
    """Every node that passes a test, in a pytree, without looking inside such nodes."""
    yield from filter(test, jax.tree.leaves(tree, is_leaf=test))


def map_nodes(change: Callable[[Any], Any], tree: Any, test: Callable[[Any], bool]) -> Any:
    """The pytree with every node that passes a test replaced by ``change(node)``."""
    return jax.tree.map(lambda x: change(x) if test(x) else x, tree, is_leaf=test)
