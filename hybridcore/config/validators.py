"""Validators of configuration fields, whose messages say what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["between", "choice"]


def between(
    low: float, high: float = math.inf, *, low_open: bool = False, high_open: bool = False
) -> Callable[[Any, Any, Any], None]:
    """Attrs validator: a number in the interval; the message names the interval.

    Args:
        low: Lower end.
        high: Upper end.
        low_open: Exclude `low`.
        high_open: Exclude `high`.
    """
    left, right = "(" if low_open else "[", ")" if high_open or high == math.inf else "]"
    text = f"a number in {left}{low:g}, {high:g}{right}"

    def check(instance: Any, attribute: Any, value: Any) -> None:
        inside = (value > low if low_open else value >= low) and (
            value < high if high_open else value <= high
        )
        if not inside:
            raise ValueError(f"out of range: got {value!r}, expected {text}")

    return check


def choice(*names: str) -> Callable[[Any, Any, Any], None]:
    """Attrs validator: one of `names`."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value not in names:
            raise ValueError(f"unknown choice: got {value!r}, expected one of {', '.join(map(repr, names))}")

    return check
