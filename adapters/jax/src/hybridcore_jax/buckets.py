"""Bulk transfer between a tree of parameters and flat buckets, compiled once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybridcore.errors import DeltaError, ModelError
from hybridcore.layout import Buckets, ParamGroup
from hybridcore_jax.parameters import Plan
from hybridcore_jax.placement import local_parts

__all__ = ["BucketStore"]

Leaves = list[Any]

Cuts = tuple[tuple[int, int, tuple[int, ...], str, int], ...]
"""Start, stop, shape, dtype and group number of each parameter of a bucket."""

_GROUPS = tuple(ParamGroup)


class BucketStore:
    """Reads and writes all parameters at once; every operation is one compiled call per bucket.

    Numbers that change from call to call (scales, weights) are arguments of the compiled functions, so that
    nothing is traced again after the first call. Arrays of JAX are immutable: a write gives new leaves.

    Args:
        plan: Where each parameter lies.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.layout = plan, plan.layout
        self._dtype = jnp.dtype(plan.layout.bucket_dtype)
        members = [
            [i for i, p in enumerate(self.layout.params) if p.bucket == b]
            for b in range(len(self.layout.bucket_sizes))
        ]
        self._members = members
        specs = [[self.layout.params[i] for i in rows] for rows in members]
        self._cuts: list[Cuts] = [
            tuple((p.offset, p.stop, p.shape, p.dtype, _GROUPS.index(p.group)) for p in s) for s in specs
        ]

    def pieces(self, leaves: Leaves) -> Leaves:
        """The parts of the leaves in layout order, each on one device."""
        if self.plan.single:
            return [leaves[row.leaf] for row in self.plan.rows]
        shards: dict[int, dict[Any, Any]] = {}
        for row in self.plan.rows:
            if row.leaf not in shards:
                shards[row.leaf] = {str(s.index): s.data for s in local_parts(leaves[row.leaf])}
        try:
            return [shards[row.leaf][str(row.index)] for row in self.plan.rows]
        except KeyError as error:
            raise ModelError(
                "a parameter is spread over the devices in another way than before",
                where="params",
                got=str(error),
                expected="the sharding that the adapter was made with",
                fix="pin the step's outputs by out_shardings or jax.lax.with_sharding_constraint",
            ) from error

    def replaced(self, leaves: Leaves, pieces: Leaves) -> Leaves:
        """Leaves like `leaves` with these parts; copies on further devices are made anew."""
        result = list(leaves)
        if self.plan.single:
            for row, piece in zip(self.plan.rows, pieces, strict=True):
                result[row.leaf] = piece
            return result
        parts: dict[int, dict[str, Any]] = {}
        for row, piece in zip(self.plan.rows, pieces, strict=True):
            parts.setdefault(row.leaf, {})[str(row.index)] = piece
        for number, by_index in parts.items():
            old = leaves[number]
            arrays = [jax.device_put(by_index[str(s.index)], s.device) for s in old.addressable_shards]
            result[number] = jax.make_array_from_single_device_arrays(old.shape, old.sharding, arrays)
        return result

    def read(self, leaves: Leaves) -> Buckets:
        """Fresh buckets with the parameters."""
        pieces = self.pieces(leaves)
        return tuple(_read(self._dtype, [pieces[i] for i in rows]) for rows in self._members)

    def add(self, into: Buckets, leaves: Leaves, weight: float, decay: float) -> Buckets:
        """``decay * into + weight * params`` in one pass, in the memory of `into`, which is gone afterwards.

        Raises:
            DeltaError: `into` does not fit the layout.
        """
        pieces = self.pieces(leaves)
        into = self.accept(into, "into", pieces)
        return tuple(
            _added(self._dtype, old, [pieces[i] for i in rows], weight, decay)
            for old, rows in zip(into, self._members, strict=True)
        )

    def write(self, leaves: Leaves, buckets: Buckets) -> Leaves:
        """Leaves with the parameters of `buckets`, cast to the model's dtypes.

        Raises:
            DeltaError: The buckets do not fit the layout.
        """
        pieces = self.pieces(leaves)
        accepted = self.accept(buckets, "buckets", pieces)
        for cuts, bucket, rows in zip(self._cuts, accepted, self._members, strict=True):
            for i, piece in zip(rows, _cut(cuts, bucket), strict=True):
                pieces[i] = piece
        return self.replaced(leaves, pieces)

    def apply(
        self,
        leaves: Leaves,
        deltas: Buckets,
        scale: float,
        groups: Mapping[ParamGroup, float] | None,
        donate: bool = False,
    ) -> Leaves:
        """Leaves plus ``scale * groups[g] * delta`` for the parameters of each group g.

        Args:
            leaves: The parameters.
            deltas: The change.
            scale: Its factor.
            groups: Further factors by group.
            donate: Whether the result may take the memory of the leaves on one device, which are then gone.

        Raises:
            DeltaError: The deltas do not fit the layout.
        """
        pieces = self.pieces(leaves)
        deltas = self.accept(deltas, "deltas", pieces)
        apply = _apply_donated if donate and self.plan.single else _apply
        factors = np.asarray([scale * (groups or {}).get(g, 1.0) for g in _GROUPS])
        for cuts, delta, rows in zip(self._cuts, deltas, self._members, strict=True):
            moved = apply(cuts, [pieces[i] for i in rows], delta, factors)
            for i, piece in zip(rows, moved, strict=True):
                pieces[i] = piece
        return self.replaced(leaves, pieces)

    def accept(self, buckets: Buckets, where: str, pieces: Leaves) -> Buckets:
        """Buckets of the layout's dtype on the right devices from anything of the right shapes.

        Raises:
            DeltaError: Number or sizes differ, or they are no arrays.
        """
        self.layout.check(buckets, where)
        accepted = []
        for bucket, rows in zip(buckets, self._members, strict=True):
            device = next(iter(pieces[rows[0]].devices()))
            if not isinstance(bucket, jax.Array) or bucket.dtype != self._dtype:
                try:
                    bucket = jnp.asarray(bucket, self._dtype)
                except (TypeError, ValueError) as error:
                    raise DeltaError(
                        "buckets are not arrays that JAX can take",
                        where=where,
                        got=type(bucket).__name__,
                        expected="1-D arrays",
                        fix="compute with the adapter's `xp`",
                    ) from error
            if bucket.devices() != {device}:
                bucket = jax.device_put(bucket, device)
            accepted.append(bucket)
        return tuple(accepted)


def _flat(dtype: Any, pieces: Sequence[Any]) -> Any:
    return jnp.concatenate([jnp.ravel(x).astype(dtype) for x in pieces])


@partial(jax.jit, static_argnums=0)
def _read(dtype: Any, pieces: Sequence[Any]) -> Any:
    # Without the copy a single flat parameter would be handed out itself, and donating it would delete both.
    flat = _flat(dtype, pieces)
    return jnp.copy(flat) if len(pieces) == 1 else flat


def _sum(dtype: Any, into: Any, pieces: Sequence[Any], weight: Any, decay: Any) -> Any:
    kept = jnp.where(decay == 0.0, 0.0, decay * into)  # NaN in a bucket to be overwritten must not stay
    return kept + weight * _flat(dtype, pieces)


_add = jax.jit(_sum, static_argnums=0, donate_argnums=1)
_add_apart = jax.jit(_sum, static_argnums=0)


def _added(dtype: Any, into: Any, pieces: Sequence[Any], weight: float, decay: float) -> Any:
    try:
        return _add(dtype, into, pieces, weight, decay)
    except (ValueError, RuntimeError) as error:
        if "external reference" not in str(error):
            raise
        # Somebody outside JAX, such as a kernel, still reads it; on a GPU its memory cannot be taken then.
        return _add_apart(dtype, into, pieces, weight, decay)


@partial(jax.jit, static_argnums=0)
def _cut(cuts: Cuts, bucket: Any) -> list[Any]:
    parts = [bucket[a:b].reshape(shape).astype(dtype) for a, b, shape, dtype, _ in cuts]
    return [jnp.copy(parts[0])] if len(parts) == 1 else parts


def _moved(cuts: Cuts, pieces: Sequence[Any], delta: Any, factors: Any) -> list[Any]:
    moved = []
    for (a, b, shape, _, group), piece in zip(cuts, pieces, strict=True):
        wide = jnp.promote_types(piece.dtype, jnp.float32)
        factor = factors[group].astype(wide)
        step = jnp.where(factor == 0.0, 0.0, factor * delta[a:b].reshape(shape).astype(wide))
        moved.append((piece.astype(wide) + step).astype(piece.dtype))
    return moved


_apply = jax.jit(_moved, static_argnums=0)
_apply_donated = jax.jit(_moved, static_argnums=0, donate_argnums=1)
