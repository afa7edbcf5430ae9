"""How a loss curve bends: the power of the steps by which its slope falls."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["bend", "straightened"]

_FEWEST = 9


def bend(losses: Sequence[float], steps: float) -> float:
    """Power q of the steps by which the slope of a training curve falls, between 0 and 1.

    Learning curves fall by powers of the steps (Hestness et al. 2017, "Deep learning scaling is predictable,
    empirically"), so that their slope falls like ``t**-q``. Here q comes from the two slopes between the
    means of three equal parts of the newest losses. A curve whose slope cannot be told is taken to be
    straight over the logarithm of the steps, q = 1.

    Args:
        losses: Training losses of the newest steps, oldest first.
        steps: Steps that the curve had come at the last of them.

    Example:
        >>> round(bend([10.0 - 0.1 * t for t in range(1, 31)], 30), 6)
        0.0
    """
    n = len(losses) // 3
    if 3 * n < _FEWEST or steps < 3 * n:
        return 1.0
    newest = list(losses)[-3 * n :]
    first, second, third = (math.fsum(newest[i * n : (i + 1) * n]) / n for i in range(3))
    older, newer = (second - first) / n, (third - second) / n
    if not (older < 0.0 and newer < 0.0):
        return 1.0
    middle = steps - 1.5 * n
    q = math.log(older / newer) / math.log((middle + n / 2.0) / (middle - n / 2.0))
    return min(max(q, 0.0), 1.0)


def straightened(steps: float, age: float, q: float) -> float:
    """Steps of a straight line that fall as far as `steps` more of a curve whose slope falls like ``t**-q``.

    Args:
        steps: Further steps, more than ``-age``.
        age: Steps that the curve had come by now, where the line touches it.
        q: See `bend`.

    Example:
        >>> round(straightened(10.0, 10.0, 1.0), 4) == round(10 * math.log(2.0), 4)
        True
    """
    if not math.isfinite(age):
        return steps
    ratio = max(1.0 + steps / age, 1e-12)
    if abs(1.0 - q) < 1e-9:
        return age * math.log(ratio)
    return age / (1.0 - q) * (math.pow(ratio, 1.0 - q) - 1.0)
