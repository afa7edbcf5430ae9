"""Bulk transfer between a model's parameters and flat buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hybridcore.errors import DeltaError, ModelError
from hybridcore.layout import Buckets, ParamGroup, ParamLayout
from hybridcore_torch.sharding import is_sharded, local_all

FEW = 64
"""Tensors up to which one call each is cheaper than a second pass over all of them."""

LARGE = 1 << 18
"""Numbers per tensor from which that holds for any number of tensors."""

__all__ = ["BucketStore"]

Tensors = list[torch.Tensor]
Memo = tuple[object, int, Tensors]

_MEMO = "_hybridcore_parts"
"""Attribute of a bucket: for which store, at which address, and its parts."""

_UNKNOWN: Memo = (None, 0, [])


class BucketStore:
    """Reads and writes all parameters at once by multi-tensor operations.

    The parts of a bucket are made once and remembered on the bucket itself, so they live exactly as long
    as it does. Parameters are reached through detached aliases, flat where they are contiguous; an alias
    is made anew when its parameter was given other memory (``model.load_state_dict(assign=True)`` or
    ``param.data = ...``).

    Args:
        layout: Where each parameter lies.
        params: The parameters in layout order.
    """

    def __init__(self, layout: ParamLayout, params: Sequence[torch.Tensor]) -> None:
        self.layout = layout
        self._held = list(params)
        self._sharded = any(map(is_sharded, self._held))
        self._addresses: list[int] = []
        self._aliases: Tensors = []
        self._shapes: list[torch.Size | None] = []
        self._dtype: torch.dtype = getattr(torch, layout.bucket_dtype)
        self._same_dtype = all(p.dtype == layout.bucket_dtype for p in layout.params)
        self._calls_are_cheap = len(self._held) <= max(FEW, layout.total // LARGE)
        self._token = object()
        self._devices = []
        self._sizes: list[list[int]] = [[] for _ in layout.bucket_sizes]
        for spec in layout.params:
            self._sizes[spec.bucket].append(spec.size)
        for index in range(len(layout.bucket_sizes)):
            spec = next(p for p in layout.params if p.bucket == index)
            self._devices.append(torch.device(spec.device))
        self._members: list[tuple[ParamGroup, list[int]]] = [
            (group, [i for i, p in enumerate(layout.params) if p.group is group])
            for group in ParamGroup
            if any(p.group is group for p in layout.params)
        ]

    @property
    def params(self) -> Tensors:
        """Detached aliases of the parameters, in layout order.

        Raises:
            ModelError: A parameter has moved to another device or dtype.
        """
        params = local_all(self._held) if self._sharded else self._held
        addresses = [p.data_ptr() for p in params]
        if addresses != self._addresses:
            self._alias(params, addresses)
        return self._aliases

    def _alias(self, params: Tensors, addresses: list[int]) -> None:
        for spec, param in zip(self.layout.params, params, strict=True):
            found = (tuple(param.shape), f"torch.{spec.dtype}", spec.device)
            if found != (spec.shape, str(param.dtype), str(param.device)):
                raise ModelError(
                    "a parameter has changed since the adapter was made",
                    where=spec.name,
                    got=f"{param.dtype} {tuple(param.shape)} on {param.device}",
                    expected=f"torch.{spec.dtype} {spec.shape} on {spec.device}",
                    fix="move or cast the model first, then make the adapter",
                )
        shapes = [None if p.is_contiguous() else p.shape for p in params]
        if shapes != self._shapes:
            self._shapes, self._token = shapes, object()  # remembered parts no longer fit
        self._aliases = [p.detach().view(-1) if p.is_contiguous() else p.detach() for p in params]
        self._addresses = addresses

    def empty(self) -> Buckets:
        """Fresh buckets of undefined content."""
        pairs = zip(self.layout.bucket_sizes, self._devices, strict=True)
        return tuple(torch.empty(n, dtype=self._dtype, device=d) for n, d in pairs)

    def fits(self, buckets: Buckets | None) -> bool:
        """Whether `buckets` can be written in place."""
        if buckets is None or len(buckets) != len(self._devices):
            return False
        if all(getattr(b, _MEMO, _UNKNOWN)[0] is self._token for b in buckets):
            return True
        return all(
            isinstance(b, torch.Tensor)
            and b.ndim == 1
            and b.shape[0] == n
            and b.dtype == self._dtype
            and b.device == d
            for b, n, d in zip(buckets, self.layout.bucket_sizes, self._devices, strict=True)
        )

    def accept(self, buckets: Buckets, where: str) -> Buckets:
        """Buckets of the layout's dtype on the right devices from anything of the right shapes.

        Raises:
            DeltaError: Number or sizes differ.
        """
        if self.fits(buckets):
            return buckets
        self.layout.check(buckets, where)
        try:
            return tuple(
                torch.as_tensor(b).detach().to(device=d, dtype=self._dtype)
                for b, d in zip(buckets, self._devices, strict=True)
            )
        except (TypeError, ValueError, RuntimeError) as error:
            raise DeltaError(
                "buckets are not arrays that PyTorch can take",
                where=where,
                got=[type(b).__name__ for b in buckets],
                expected="1-D tensors",
                fix="compute with the adapter's `xp`",
            ) from error

    def views(self, buckets: Buckets) -> Tensors:
        """Parts of the buckets in layout order, in the shapes of the aliases."""
        if len(buckets) == 1:
            return self._views(0, buckets[0])
        return [view for i, bucket in enumerate(buckets) for view in self._views(i, bucket)]

    def _views(self, index: int, bucket: torch.Tensor) -> Tensors:
        memo: Memo = getattr(bucket, _MEMO, _UNKNOWN)
        if memo[0] is self._token and memo[1] == bucket.data_ptr():
            return memo[2]
        shapes = [s for s, p in zip(self._shapes, self.layout.params, strict=True) if p.bucket == index]
        # Parts of the detached twin: parts of the bucket itself would keep it alive through their base.
        parts = torch.split_with_sizes(bucket.detach(), self._sizes[index])
        views = [p if s is None else p.view(s) for p, s in zip(parts, shapes, strict=True)]
        setattr(bucket, _MEMO, (self._token, bucket.data_ptr(), views))
        return views

    def read(self, out: Buckets | None = None) -> Buckets:
        """Copy the parameters into `out`, or into new buckets where it does not fit."""
        if out is None or not self.fits(out):
            out = self.empty()
        params = self.params
        torch._foreach_copy_(self.views(out), params)
        return out

    def add(self, into: Buckets, weight: float, decay: float) -> Buckets:
        """``decay * into + weight * params``, in place where `into` allows it.

        Raises:
            DeltaError: `into` does not fit the layout.
        """
        into = self.accept(into, "into")
        params, views = self.params, self.views(into)
        if decay == 0.0:
            torch._foreach_copy_(views, params)
            if weight != 1.0:
                _scale(into, weight)
        elif self._same_dtype and decay == 1.0 - weight:
            torch._foreach_lerp_(views, params, weight)
        elif self._same_dtype and weight == 1.0 and decay == -1.0 and self._calls_are_cheap:
            for view, param in zip(views, params, strict=True):  # one pass instead of two
                torch.sub(param.detach(), view, out=view)
        else:
            if decay != 1.0:
                _scale(into, decay)
            torch._foreach_add_(views, params, alpha=weight)
        return into

    def write(self, buckets: Buckets) -> None:
        """Set the parameters.

        Raises:
            DeltaError: The buckets do not fit the layout.
        """
        params = self.params
        torch._foreach_copy_(params, self.views(self.accept(buckets, "buckets")))

    def apply(self, deltas: Buckets, scale: float, groups: Mapping[ParamGroup, float] | None) -> None:
        """Add ``scale * groups[g] * delta`` to the parameters of each group g.

        Raises:
            DeltaError: The deltas do not fit the layout; nothing was changed.
        """
        params, views = self.params, self.views(self.accept(deltas, "deltas"))
        factors = {g: scale * (groups.get(g, 1.0) if groups else 1.0) for g, _ in self._members}
        if len(set(factors.values())) == 1:
            torch._foreach_add_(params, views, alpha=next(iter(factors.values())))
            return
        for group, members in self._members:
            if factors[group] != 0.0:
                torch._foreach_add_(
                    [params[i] for i in members], [views[i] for i in members], alpha=factors[group]
                )


def _scale(buckets: Buckets, factor: float) -> None:
    for bucket in buckets:
        bucket.mul_(factor)
