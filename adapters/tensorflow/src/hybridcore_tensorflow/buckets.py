"""Bulk transfer between a model's variables and flat buckets, one graph call each way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from hybridcore.layout import Buckets, ParamGroup, ParamLayout
from hybridcore_tensorflow.arrays import ArrayBridge
from hybridcore_tensorflow.variables import components

__all__ = ["BucketStore"]


class BucketStore:
    """Reads and writes all trained variables at once.

    A call into TensorFlow costs about a hundred times a NumPy one, so each way is one graph: reading joins
    all variables into one vector per bucket, writing cuts one up again. Mirrored variables are read from
    their first replica and written in all of them, without any traffic between replicas (F71).

    Args:
        layout: Where each variable lies.
        variables: The variables in layout order.
        bridge: Makes arrays of tensors.
    """

    def __init__(self, layout: ParamLayout, variables: Sequence[Any], bridge: ArrayBridge) -> None:
        self.layout, self._bridge = layout, bridge
        self._dtype = tf.as_dtype(layout.bucket_dtype)
        self._parts = [components(v) for v in variables]
        self._members = [
            [i for i, p in enumerate(layout.params) if p.bucket == bucket]
            for bucket in range(len(layout.bucket_sizes))
        ]
        self._groups = tuple(ParamGroup)
        vectors = [tf.TensorSpec((n,), self._dtype) for n in layout.bucket_sizes]
        factors = tf.TensorSpec((len(self._groups),), tf.float64)
        self._gather = tf.function(self._gathered, input_signature=[], autograph=False)
        self._set = tf.function(self._written, input_signature=[vectors], autograph=False)
        self._shift = tf.function(self._shifted, input_signature=[vectors, factors], autograph=False)
        self._save = tf.function(self._saved, input_signature=[], autograph=False)
        own = [tf.TensorSpec(p.shape, p.dtype) for p in layout.params]
        self._load = tf.function(self._loaded, input_signature=[own], autograph=False)

    # Graphs

    def _gathered(self) -> list[Any]:
        return [
            tf.concat([tf.cast(tf.reshape(self._parts[i][0], (-1,)), self._dtype) for i in members], 0)
            for members in self._members
        ]

    def _cut(self, vectors: Sequence[Any], index: int) -> Any:
        spec = self.layout.params[index]
        return tf.reshape(vectors[spec.bucket][spec.offset : spec.stop], spec.shape)

    def _written(self, vectors: Sequence[Any]) -> None:
        for index, parts in enumerate(self._parts):
            value = tf.cast(self._cut(vectors, index), parts[0].dtype)
            for part in parts:
                part.assign(value)

    def _shifted(self, vectors: Sequence[Any], factors: Any) -> None:
        for index, parts in enumerate(self._parts):
            dtype = parts[0].dtype
            factor = factors[self._groups.index(self.layout.params[index].group)]
            value = self._cut(vectors, index)
            # Half precision: multiplied in float32, rounded once.
            wide = tf.float64 if dtype == tf.float64 else tf.float32
            step = tf.cast(factor, wide) * tf.cast(value, wide)
            for part in parts:
                if dtype.size < 4:
                    part.assign(tf.cast(tf.cast(part, wide) + step, dtype))
                else:
                    part.assign_add(step)

    def _saved(self) -> list[Any]:
        return [tf.raw_ops.DeepCopy(x=parts[0].read_value()) for parts in self._parts]

    def _loaded(self, values: Sequence[Any]) -> None:
        for parts, value in zip(self._parts, values, strict=True):
            for part in parts:
                part.assign(value)

    def cut(self, vectors: Sequence[Any]) -> list[Any]:
        """Pieces of bucket vectors, shaped and typed like the variables; also inside a graph."""
        return [tf.cast(self._cut(vectors, i), parts[0].dtype) for i, parts in enumerate(self._parts)]

    # Calls

    def tensors(self, buckets: Buckets) -> list[Any]:
        """Buckets as vectors of TensorFlow.

        Raises:
            DeltaError: The buckets do not fit the layout.
        """
        self.layout.check(buckets, where="directions")
        return [self._bridge.tensor(b, self._dtype.name) for b in buckets]

    def read(self, out: Buckets | None = None) -> Buckets:
        """Copy the variables into `out`, or into new buckets where it does not fit."""
        vectors = self._gather()
        if out is None or not self._fit(out):
            return tuple(self._bridge.copy(v) for v in vectors)
        for target, vector in zip(out, vectors, strict=True):
            self._bridge.copy_into(target, vector)
        return out

    def add(self, into: Buckets, weight: float, decay: float) -> Buckets:
        """``decay * into + weight * params``, in place where `into` allows it.

        Raises:
            DeltaError: `into` does not fit the layout.
        """
        self.layout.check(into, "into")
        if not self._fit(into):
            into = tuple(self._bridge.copy(self._bridge.tensor(b, self._dtype.name)) for b in into)
        for target, vector in zip(into, self._gather(), strict=True):
            values = self._bridge.view(vector)
            if weight == 1.0 and decay == -1.0:
                target *= -1.0
                target += values
                continue
            if decay == 0.0:
                target[...] = values
                if weight != 1.0:
                    target *= weight
                continue
            if decay != 1.0:
                target *= decay
            target += values if weight == 1.0 else weight * values
        return into

    def write(self, buckets: Buckets) -> None:
        """Set the variables.

        Raises:
            DeltaError: The buckets do not fit the layout.
        """
        self.layout.check(buckets)
        self._set([self._bridge.tensor(b, self._dtype.name) for b in buckets])

    def apply(self, deltas: Buckets, scale: float, groups: Mapping[ParamGroup, float] | None) -> None:
        """Add ``scale * groups[g] * delta`` to the variables of each group g.

        Raises:
            DeltaError: The deltas do not fit the layout; nothing was changed.
        """
        self.layout.check(deltas, where="deltas")
        factors = [scale * (groups.get(g, 1.0) if groups else 1.0) for g in self._groups]
        self._shift(
            [self._bridge.tensor(b, self._dtype.name) for b in deltas], tf.constant(factors, tf.float64)
        )

    def save(self) -> list[Any]:
        """Copies of the variables in their own dtypes."""
        return list(self._save())

    def load(self, saved: Sequence[Any]) -> None:
        """Put back what `save` gave, bit for bit, in all replicas."""
        self._load(list(saved))

    def _fit(self, buckets: Buckets) -> bool:
        sizes = self.layout.bucket_sizes
        return len(buckets) == len(sizes) and all(
            self._bridge.fits(b, n, self._dtype.name) for b, n in zip(buckets, sizes, strict=True)
        )
