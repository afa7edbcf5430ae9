"""How a model's parameters lie in flat buckets, and in which group each one is."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import attrs

from hybridcore.errors import DeltaError

__all__ = ["Array", "Buckets", "ParamGroup", "ParamLayout", "ParamSpec", "guess_group"]

Array = Any
"""Any array of an Array API namespace."""

Buckets = tuple[Array, ...]
"""One 1-D array per bucket, of `ParamLayout.bucket_dtype` and of size ``bucket_sizes[i]`` of the layout."""


class ParamGroup(StrEnum):
    """Kind of a parameter; caps and scales of predicted changes are set per group (F86)."""

    MATRIX = "matrix"
    EMBEDDING = "embedding"
    NORM = "norm"
    BIAS = "bias"


def guess_group(name: str, shape: tuple[int, ...]) -> ParamGroup:
    """Group of a parameter from its name and shape, where the adapter knows nothing better.

    Args:
        name: Dotted parameter name.
        shape: Its shape.

    Returns:
        BIAS or NORM for arrays of fewer than two axes, else MATRIX.

    Example:
        >>> guess_group("layers.0.bias", (16,)).value
        'bias'
    """
    if len(shape) >= 2:
        return ParamGroup.MATRIX
    leaf = name.rsplit(".", 1)[-1].lower()
    return ParamGroup.BIAS if "bias" in leaf or leaf in {"b", "beta"} else ParamGroup.NORM


@attrs.frozen
class ParamSpec:
    """One parameter.

    Attributes:
        name: Dotted name in the model.
        shape: Shape in the model.
        dtype: The model's own dtype, such as ``"bfloat16"``; that of buckets is `ParamLayout.bucket_dtype`.
        device: Device name, for example ``"cpu"`` or ``"cuda:0"``.
        group: Its kind.
        bucket: Index of the bucket that holds it.
        offset: First index inside that bucket.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    group: ParamGroup
    bucket: int
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """One past its last index inside the bucket."""
        return self.offset + self.size


@attrs.frozen
class ParamLayout:
    """Where each parameter lies.

    Inside a bucket, parameters of one group are contiguous, so that a per-group operation is one slice.

    Attributes:
        params: All parameters in bucket and offset order.
        bucket_sizes: Elements per bucket.

    Example:
        >>> rows = [("w", (2, 3), "float32", "cpu", None), ("b", (3,), "float32", "cpu", None)]
        >>> layout = ParamLayout.plan(rows)
        >>> layout.bucket_sizes, layout.names
        ((9,), ('w', 'b'))
    """

    params: tuple[ParamSpec, ...]
    bucket_sizes: tuple[int, ...]

    @classmethod
    def plan(cls, params: Iterable[tuple[str, tuple[int, ...], str, str, ParamGroup | None]]) -> ParamLayout:
        """Lay parameters out: one bucket per (device, dtype), groups contiguous, order kept inside a group.

        Args:
            params: ``(name, shape, dtype, device, group or None)``; None guesses the group.

        Returns:
            The layout.
        """
        order = list(ParamGroup)
        rows = [(n, tuple(s), d, dev, g or guess_group(n, tuple(s))) for n, s, d, dev, g in params]
        keys = sorted({(dev, dtype) for _, _, dtype, dev, _ in rows})
        specs: list[ParamSpec] = []
        sizes: list[int] = []
        for index, key in enumerate(keys):
            members = [r for r in rows if (r[3], r[2]) == key]
            members.sort(key=lambda r: order.index(r[4]))
            offset = 0
            for name, shape, dtype, device, group in members:
                specs.append(ParamSpec(name, shape, dtype, device, group, index, offset))
                offset += math.prod(shape)
            sizes.append(offset)
        return cls(tuple(specs), tuple(sizes))

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in layout order."""
        return tuple(p.name for p in self.params)

    @property
    def total(self) -> int:
        """Number of weights."""
        return sum(self.bucket_sizes)

    @property
    def bucket_dtype(self) -> str:
        """Dtype of all buckets: ``"float64"`` where every parameter is float64, else ``"float32"``.

        Float32 holds every narrower weight exactly. Where only some parameters are float64 the others cannot
        be known better than to float32, and all buckets share one dtype so that no operation mixes two.

        Example:
            >>> ParamLayout.plan([("w", (2, 3), "float64", "cpu", None)]).bucket_dtype
            'float64'
        """
        wide = bool(self.params) and all(p.dtype == "float64" for p in self.params)
        return "float64" if wide else "float32"

    @property
    def itemsize(self) -> int:
        """Bytes of one number of a bucket."""
        return 8 if self.bucket_dtype == "float64" else 4

    @property
    def nbytes(self) -> int:
        """Bytes of one copy of all weights as buckets."""
        return self.itemsize * self.total

    def group_slices(self) -> tuple[tuple[ParamGroup, int, slice], ...]:
        """``(group, bucket, slice)`` of every contiguous run of one group."""
        runs: list[tuple[ParamGroup, int, slice]] = []
        for spec in self.params:
            if runs and runs[-1][0] is spec.group and runs[-1][1] == spec.bucket:
                runs[-1] = (spec.group, spec.bucket, slice(runs[-1][2].start, spec.stop))
            else:
                runs.append((spec.group, spec.bucket, slice(spec.offset, spec.stop)))
        return tuple(runs)

    def unpack(self, buckets: Buckets, xp: Any) -> dict[str, Array]:
        """Named arrays of the model's shapes from buckets (F20).

        Args:
            buckets: One 1-D array per bucket.
            xp: Their array namespace.

        Returns:
            Name to array; views where the namespace makes views.
        """
        self.check(buckets)
        return {p.name: xp.reshape(buckets[p.bucket][p.offset : p.stop], p.shape) for p in self.params}

    def pack(self, named: Mapping[str, Array], xp: Any) -> Buckets:
        """Buckets from named arrays; parameters that are not named get zeros.

        Args:
            named: Parameter name to array of that parameter's shape.
            xp: Array namespace of the arrays.

        Returns:
            Buckets of `bucket_dtype`.

        Raises:
            DeltaError: A name is unknown or a shape differs (F22).
        """
        known = {p.name: p for p in self.params}
        for name, value in named.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise DeltaError(
                    "a weight delta names a parameter that the model does not have",
                    where=name,
                    got=name,
                    expected=f"one of {len(known)} parameter names",
                    fix=f"did you mean {close[0]!r}?" if close else "take names from `layout.names`",
                )
            if tuple(value.shape) != known[name].shape:
                raise DeltaError(
                    "a weight delta has the wrong shape",
                    where=name,
                    got=tuple(value.shape),
                    expected=str(known[name].shape),
                    fix="return deltas in the shapes of `layout.params`",
                )
        buckets, dtype = [], getattr(xp, self.bucket_dtype)
        for index in range(len(self.bucket_sizes)):
            parts = []
            for p in self.params:
                if p.bucket != index:
                    continue
                if p.name in named:
                    parts.append(xp.astype(xp.reshape(named[p.name], (-1,)), dtype))
                else:
                    parts.append(xp.zeros((p.size,), dtype=dtype))
            buckets.append(xp.concat(parts))
        return tuple(buckets)

    def check(self, buckets: Buckets, where: str = "buckets") -> None:
        """Raise `DeltaError` unless the buckets have this layout's number and sizes."""
        sizes = tuple(tuple(b.shape) for b in buckets)
        expected = tuple((n,) for n in self.bucket_sizes)
        if sizes != expected:
            raise DeltaError(
                "buckets do not fit the model's layout",
                where=where,
                got=sizes,
                expected=str(expected),
                fix="build deltas from `history` arrays or with `layout.pack`",
            )
