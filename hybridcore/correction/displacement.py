"""Realised against predicted displacement: inner products per group and the part that no gain explains."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from hybridcore.layout import Array, Buckets, ParamGroup, ParamLayout

__all__ = ["compare_displacements", "scale_groups"]

Products = dict[ParamGroup, tuple[float, float]]


def compare_displacements(
    realised: Buckets, predicted: Buckets, layout: ParamLayout, xp: ModuleType
) -> Products:
    """``<r, p>`` and ``<p, p>`` of each group of parameters.

    Args:
        realised: r, as buckets.
        predicted: p, as buckets.
        layout: Their layout.
        xp: Their namespace.

    Example:
        >>> from array_api_compat import numpy as xp
        >>> layout = ParamLayout.plan([("w", (1, 2), "float32", "cpu", None)])
        >>> r, p = (xp.asarray([1.0, 2.0]),), (xp.asarray([2.0, 0.0]),)
        >>> compare_displacements(r, p, layout, xp)[ParamGroup.MATRIX]
        (2.0, 4.0)
    """
    found: Products = {}
    for group, bucket, part in layout.group_slices():
        r, p = realised[bucket][part], predicted[bucket][part]
        cross, square = found.get(group, (0.0, 0.0))
        found[group] = cross + float(xp.matmul(r, p)), square + float(xp.matmul(p, p))
    return found


def scale_groups(
    buckets: Buckets, factors: Mapping[ParamGroup, float], layout: ParamLayout, xp: ModuleType
) -> Buckets:
    """New buckets with every group times its factor; missing groups count 0."""
    pieces: list[list[Array]] = [[] for _ in buckets]
    for group, bucket, part in layout.group_slices():
        pieces[bucket].append(buckets[bucket][part] * factors.get(group, 0.0))
    return tuple(xp.concat(p) for p in pieces)
