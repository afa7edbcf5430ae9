"""Bulk transfer between a model's parameters and flat float32 buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hybridcore.errors import DeltaError
from hybridcore.layout import Buckets, ParamGroup, ParamLayout

__all__ = ["BucketStore"]

Tensors = list[torch.Tensor]


class BucketStore:
    """Reads and writes all parameters at once by multi-tensor operations.

    The shaped views of a bucket are made once and remembered on the bucket itself, so they live exactly
    as long as it does.

    Args:
        layout: Where each parameter lies.
        params: The parameters in layout order.
    """

    def __init__(self, layout: ParamLayout, params: Sequence[torch.Tensor]) -> None:
        self.layout = layout
        self.params: Tensors = list(params)
        self._shapes = [p.shape for p in layout.params]
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

    def empty(self) -> Buckets:
        """Fresh buckets of undefined content."""
        pairs = zip(self.layout.bucket_sizes, self._devices, strict=True)
        return tuple(torch.empty(n, dtype=torch.float32, device=d) for n, d in pairs)

    def fits(self, buckets: Buckets | None) -> bool:
        """Whether `buckets` can be written in place."""
        return (
            buckets is not None
            and len(buckets) == len(self._devices)
            and all(
                isinstance(b, torch.Tensor)
                and b.ndim == 1
                and b.shape[0] == n
                and b.dtype == torch.float32
                and b.device == d
                for b, n, d in zip(buckets, self.layout.bucket_sizes, self._devices, strict=True)
            )
        )

    def accept(self, buckets: Buckets, where: str) -> Buckets:
        """Float32 buckets on the right devices from anything of the right shapes.

        Raises:
            DeltaError: Number or sizes differ.
        """
        if self.fits(buckets):
            return buckets
        self.layout.check(buckets, where)
        try:
            return tuple(
                torch.as_tensor(b).detach().to(device=d, dtype=torch.float32)
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
        """Parameter-shaped views of the buckets, in layout order."""
        if len(buckets) == 1:
            return self._views(0, buckets[0])
        return [view for i, bucket in enumerate(buckets) for view in self._views(i, bucket)]

    def _views(self, index: int, bucket: torch.Tensor) -> Tensors:
        memo: tuple[ParamLayout, int, Tensors] | None = getattr(bucket, "_hybridcore_views", None)
        if memo is not None and memo[0] is self.layout and memo[1] == bucket.data_ptr():
            return memo[2]
        shapes = [s for s, p in zip(self._shapes, self.layout.params, strict=True) if p.bucket == index]
        # Views of the detached twin: views of the bucket itself would keep it alive through their base.
        parts = torch.split_with_sizes(bucket.detach(), self._sizes[index])
        views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        bucket._hybridcore_views = (self.layout, bucket.data_ptr(), views)  # type: ignore[attr-defined]
        return views

    @torch.no_grad()
    def read(self, out: Buckets | None = None) -> Buckets:
        """Copy the parameters into `out`, or into new buckets where it does not fit."""
        if out is None or not self.fits(out):
            out = self.empty()
        torch._foreach_copy_(self.views(out), self.params)
        return out

    @torch.no_grad()
    def add(self, into: Buckets, weight: float, decay: float) -> Buckets:
        """``decay * into + weight * params``, in place where `into` allows it.

        Raises:
            DeltaError: `into` does not fit the layout.
        """
        into = self.accept(into, "into")
        views = self.views(into)
        if decay == 0.0:
            torch._foreach_copy_(views, self.params)
            if weight != 1.0:
                torch._foreach_mul_(list(into), weight)
            return into
        if decay != 1.0:
            torch._foreach_mul_(list(into), decay)
        torch._foreach_add_(views, self.params, alpha=weight)
        return into

    @torch.no_grad()
    def write(self, buckets: Buckets) -> None:
        """Set the parameters.

        Raises:
            DeltaError: The buckets do not fit the layout.
        """
        torch._foreach_copy_(self.params, self.views(self.accept(buckets, "buckets")))

    @torch.no_grad()
    def apply(self, deltas: Buckets, scale: float, groups: Mapping[ParamGroup, float] | None) -> None:
        """Add ``scale * groups[g] * delta`` to the parameters of each group g.

        Raises:
            DeltaError: The deltas do not fit the layout; nothing was changed.
        """
        views = self.views(self.accept(deltas, "deltas"))
        factors = {g: scale * (groups.get(g, 1.0) if groups else 1.0) for g, _ in self._members}
        if len(set(factors.values())) == 1:
            torch._foreach_add_(self.params, views, alpha=next(iter(factors.values())))
            return
        for group, members in self._members:
            if factors[group] != 0.0:
                torch._foreach_add_(
                    [self.params[i] for i in members], [views[i] for i in members], alpha=factors[group]
                )
