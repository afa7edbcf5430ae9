"""How far a change that is under way should go in all, from losses measured along it (F31)."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["aim"]


def aim(points: Sequence[tuple[float, float]], slope: float, most: float) -> float:
    """Share of a change at which the loss along it is lowest.

    The loss along the change is taken as a parabola through the origin, ``m(a) = p a + q a^2``: through the
    last two measurements where there are two, else through the last one with the promised slope p.

    Args:
        points: Pairs ``(a, m)``: share applied, and loss there minus loss before the change.
        slope: Loss change that the whole change promised, p; NaN while unknown.
        most: Largest share allowed, at least 1.

    Returns:
        In [0, most]; 0, the way back, where the last measurement is not finite.

    Example:
        >>> aim([(0.2, -0.16), (0.4, -0.24)], math.nan, 1.5)  # m = -a + a^2, lowest at one half
        0.5
        >>> aim([(0.2, -0.2)], -1.0, 1.5)  # as good as promised: go further
        1.5
    """
    known = [(a, m) for a, m in points if a > 0.0]
    if not known:
        return 1.0
    a, m = known[-1]
    if not math.isfinite(m):
        return 0.0
    older = [(b, n) for b, n in known[:-1] if math.isfinite(n) and abs(b - a) > 1e-9]
    if older:
        b, n = older[-1]
        bend = (m / a - n / b) / (a - b)
        slope = m / a - bend * a
    elif math.isfinite(slope) and slope < 0.0:
        bend = (m - slope * a) / (a * a)
    else:
        return 1.0 if m <= 0.0 else 0.0
    if bend <= 0.0:
        return most if m < 0.0 else 0.0
    return round(min(max(-slope / (2.0 * bend), 0.0), most), 12)
