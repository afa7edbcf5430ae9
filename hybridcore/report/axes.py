"""Logarithmic axes with plain numbers."""

from __future__ import annotations

from typing import Any

__all__ = ["plain_log"]


def plain_log(axis: Any, name: str, suffix: str = "") -> None:
    """Make the x or y axis of a matplotlib axis logarithmic, with ticks at 1, 2 and 5 times powers of ten.

    Over more than three decades only powers of ten are labelled.

    Args:
        axis: The axis; its limits have been set, or its data drawn.
        name: ``"x"`` or ``"y"``.
        suffix: Follows every number.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set(**{f"{name}scale": "log"})
    low, high = axis.get_xlim() if name == "x" else axis.get_ylim()
    line = getattr(axis, f"{name}axis")
    line.set_major_locator(LogLocator(subs=(1.0,) if high > 1000.0 * low else (1.0, 2.0, 5.0)))
    line.set_major_formatter(StrMethodFormatter("{x:g}" + suffix))
    line.set_minor_formatter(NullFormatter())
