"""Which leaves take part, what they are called, and how they lie in buckets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import jax
import jax.numpy as jnp
import numpy as np

from hybridcore.errors import ModelError
from hybridcore.layout import ParamGroup, ParamLayout, guess_group
from hybridcore_jax.placement import local_parts
from hybridcore_jax.trees import device_name, named_leaves

__all__ = ["Plan", "Row", "as_arrays", "plan_params"]

_HALF = {"float16", "bfloat16", "float32", "float64"}


@attrs.frozen
class Row:
    """One parameter of the layout: a whole leaf, or the part of it that one device holds.

    Attributes:
        leaf: Index of the leaf in the flattened tree.
        index: Slices of the part, or None for a whole leaf on one device.
    """

    leaf: int
    index: tuple[slice, ...] | None


@attrs.frozen
class Plan:
    """A pytree of parameters and how its trainable leaves lie in buckets.

    Attributes:
        structure: Structure of the tree.
        names: Name of every leaf.
        kinds: Shape and dtype of every leaf.
        trained: Whether each leaf takes part.
        layout: The layout.
        rows: One row per parameter of the layout, in its order.
        single: Whether all leaves lie whole on one device.
        devices: The devices of all leaves.
    """

    structure: Any
    names: tuple[str, ...]
    kinds: tuple[tuple[tuple[int, ...], str], ...]
    trained: tuple[bool, ...]
    layout: ParamLayout
    rows: tuple[Row, ...]
    single: bool
    devices: frozenset[Any]

    def check(self, params: Any, where: str) -> list[jax.Array]:
        """Leaves of a tree that must be like the planned one.

        Raises:
            ModelError: Structure, shapes, dtypes or devices differ.
        """
        leaves, structure = jax.tree.flatten(params)
        if structure != self.structure:
            found = {name for name, _ in named_leaves(params)}
            changed = sorted(found ^ set(self.names))
            raise ModelError(
                "the tree of parameters has changed its structure",
                where=where,
                got=f"{len(leaves)} leaves; {', '.join(changed[:4]) or 'other containers'} differ",
                expected=f"the {len(self.names)} leaves the adapter was made with",
                fix="make a new adapter after changing the model, and return the same containers",
            )
        for name, kind, leaf in zip(self.names, self.kinds, leaves, strict=True):
            if not isinstance(leaf, jax.Array):
                raise ModelError(
                    "a parameter is no array of JAX any more",
                    where=f"{where}: {name}",
                    got=type(leaf).__name__,
                    expected=f"a jax.Array, {kind[1]} {kind[0]}",
                    fix="return what JAX computed, or put it on the device by jax.device_put",
                )
            if leaf.sharding.device_set != self.devices:
                raise ModelError(
                    "a parameter lies on other devices than when the adapter was made",
                    where=f"{where}: {name}",
                    got=_places(leaf.sharding.device_set),
                    expected=_places(self.devices),
                    fix="keep the parameters where they are; put batches beside them by jax.device_put",
                )
            if (leaf.shape, leaf.dtype.name) != kind:
                raise ModelError(
                    "a parameter has changed since the adapter was made",
                    where=f"{where}: {name}",
                    got=f"{leaf.dtype.name} {leaf.shape}",
                    expected=f"{kind[1]} {kind[0]}",
                    fix="keep shapes and dtypes; a cast belongs into the loss function",
                )
        return leaves


def as_arrays(params: Any) -> Any:
    """The tree with all leaves as JAX arrays; those that are already stay the same objects.

    Raises:
        ModelError: There is nothing to train, a leaf is no real floating-point array, or float64 is not on.
    """
    rows = named_leaves(params)
    if not rows:
        raise ModelError("the model has no parameters", where="params", fix="pass a pytree with arrays")
    arrays = []
    for name, leaf in rows:
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, float)):
            raise ModelError(
                "a parameter is no array",
                where=name,
                got=type(leaf).__name__,
                expected="a JAX or NumPy array",
                fix="keep settings out of the tree of parameters",
            )
        dtype = jnp.asarray(leaf).dtype if isinstance(leaf, float) else leaf.dtype
        if jnp.result_type(float) != np.float64 and dtype in (np.float64, np.complex128):
            raise ModelError(
                "a parameter has double precision, which JAX has switched off",
                where=name,
                got=str(dtype),
                expected="float32 or narrower",
                fix='call jax.config.update("jax_enable_x64", True) at the start of the program, '
                "or cast the parameters to float32",
            )
        if not isinstance(leaf, float) and str(dtype) not in _HALF:
            raise ModelError(
                "a parameter cannot be trained by prediction",
                where=name,
                got=str(dtype),
                expected=f"one of {', '.join(sorted(_HALF))}",
                fix="keep counters and random keys in `state` instead of the parameters",
            )
        arrays.append(leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf))
    return jax.tree.unflatten(jax.tree.structure(params), arrays)


def plan_params(
    params: Any,
    trainable: Callable[[str], bool] | None = None,
    groups: Mapping[str, ParamGroup] | None = None,
) -> Plan:
    """Plan the buckets of a tree of arrays.

    A leaf on one device is one parameter. A leaf spread over several devices gives one parameter per part,
    in the bucket of the device that holds it, so that no bucket operation ever moves weights between
    devices; of copies on several devices the first counts.

    Args:
        params: The tree, JAX arrays only.
        trainable: Whether the leaf of a name is trained; None trains all.
        groups: Kinds of parameters by name where they are known; the others are guessed.

    Raises:
        ModelError: Nothing is trained, or leaves lie on different sets of devices.
    """
    named = named_leaves(params)
    names = tuple(name for name, _ in named)
    trained = tuple(trainable is None or bool(trainable(name)) for name in names)
    if not any(trained):
        raise ModelError(
            "no parameter is trained",
            where="trainable",
            got=f"false for all of {', '.join(names[:4])}",
            expected="true for one or more names",
            fix="correct the function `trainable(name)`",
        )
    places: dict[frozenset[Any], str] = {}
    for name, leaf in named:
        places.setdefault(frozenset(leaf.sharding.device_set), name)
    if len(places) > 1:
        raise ModelError(
            "the parameters lie on different devices",
            where=", ".join(list(places.values())[:4]),
            got="; ".join(sorted(map(_places, places))),
            expected="one device, or one mesh for all parameters",
            fix="put the whole tree there by jax.device_put(params, device_or_sharding)",
        )
    single = len(next(iter(places))) == 1
    found: list[tuple[tuple[str, tuple[int, ...], str, str, ParamGroup], Row]] = []
    for number, (name, leaf) in enumerate(named):
        if not trained[number]:
            continue
        known = (groups or {}).get(name)
        group = known if known is not None else guess_group(name, leaf.shape)
        for label, shape, device, index in _parts(name, leaf, single):
            found.append(((label, shape, leaf.dtype.name, device_name(device), group), Row(number, index)))
    layout = ParamLayout.plan(spec for spec, _ in found)
    rows = {spec[0]: row for spec, row in found}
    return Plan(
        structure=jax.tree.structure(params),
        names=names,
        kinds=tuple((leaf.shape, leaf.dtype.name) for _, leaf in named),
        trained=trained,
        layout=layout,
        rows=tuple(rows[name] for name in layout.names),
        single=single,
        devices=next(iter(places)),
    )


def _places(devices: Iterable[Any]) -> str:
    return ",".join(sorted(map(device_name, devices)))


def _parts(
    name: str, leaf: jax.Array, single: bool
) -> list[tuple[str, tuple[int, ...], Any, tuple[slice, ...] | None]]:
    """Name, shape, device and slices of each part of a leaf that this process holds."""
    if single:
        return [(name, leaf.shape, next(iter(leaf.devices())), None)]
    parts = []
    for shard in local_parts(leaf):
        cut = [s.indices(n)[:2] for s, n in zip(shard.index, leaf.shape, strict=True)]
        whole = all(pair == (0, n) for pair, n in zip(cut, leaf.shape, strict=True))
        label = name if whole else f"{name}[{', '.join(f'{a}:{b}' for a, b in cut)}]"
        parts.append((label, shard.data.shape, shard.device, shard.index))
    held = sum(math.prod(shape) for _, shape, _, _ in parts)
    if held != leaf.size:
        raise ModelError(
            "a part of a parameter lies on devices of another process, which this one cannot read",
            where=name,
            got=f"{held} of {leaf.size} weights in process {jax.process_index()} of {jax.process_count()}",
            expected="all of them: a copy in each process, or parts on the devices of one",
            fix="shard batches over processes, and parameters over the devices within each at most: "
            "NamedSharding(mesh, PartitionSpec())",
        )
    return parts
