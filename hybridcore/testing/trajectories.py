"""Trajectories with a known continuation, told to the real `History` by an adapter that only plays back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hybridcore.config import HistoryConfig
from hybridcore.history import NEEDS, History
from hybridcore.layout import Buckets, ParamLayout
from hybridcore.protocols import Adapter, Phase, StepRecord

__all__ = ["TrajectoryAdapter", "curve", "layout_of_two_buckets", "straight_line", "synthetic_history"]

Vector = NDArray[np.float32]


def layout_of_two_buckets() -> ParamLayout:
    """A layout with 23 weights in two buckets (float32 and bfloat16) and three parameter groups."""
    return ParamLayout.plan(
        [
            ("dense.weight", (3, 4), "float32", "cpu", None),
            ("dense.bias", (3,), "float32", "cpu", None),
            ("norm.scale", (4,), "float32", "cpu", None),
            ("head.weight", (2, 2), "bfloat16", "cpu", None),
        ]
    )


def straight_line(size: int, steps: int, seed: int = 0) -> list[Vector]:
    """Weights ``w_0 + t v``, t = 0 .. steps, in numbers that float32 represents exactly.

    Args:
        size: Number of weights.
        steps: Number of steps.
        seed: Chooses ``w_0`` and ``v``.
    """
    rng = np.random.default_rng(seed)
    start = rng.integers(-64, 65, size) / 16.0
    velocity = rng.integers(1, 9, size) * rng.choice([-1.0, 1.0], size) / 64.0
    return [(start + t * velocity).astype(np.float32) for t in range(steps + 1)]


def curve(size: int, steps: int, seed: int = 0) -> list[Vector]:
    """Noisy gradient descent on a quadratic bowl: weights decay at rates between 0.8 and 0.99 per step.

    Args:
        size: Number of weights.
        steps: Number of steps.
        seed: Chooses start, rates and noise.
    """
    rng = np.random.default_rng(seed)
    weights, rates = rng.standard_normal(size), np.linspace(0.8, 0.99, size)
    path = [weights]
    for _ in range(steps):
        path.append(rates * path[-1] + 0.003 * rng.standard_normal(size))
    return [w.astype(np.float32) for w in path]


class TrajectoryAdapter:
    """Plays a trajectory back through the part of the adapter protocol that a history reads.

    Args:
        xp: Array namespace of the buckets.
        layout: Layout of the weights.
        trajectory: Flat float32 weights, shape (layout.total,), before the first step and after each.
        protect: Applied to each array handed out, for example to make it read-only.

    Example:
        >>> from array_api_compat import numpy as xp
        >>> layout = layout_of_two_buckets()
        >>> adapter = TrajectoryAdapter(xp, layout, straight_line(layout.total, 5))
        >>> adapter.advance()
        >>> [b.shape for b in adapter.read_params()]
        [(4,), (19,)]
    """

    def __init__(
        self,
        xp: ModuleType,
        layout: ParamLayout,
        trajectory: Sequence[Vector],
        protect: Callable[[Any], Any] = lambda array: array,
    ) -> None:
        self.xp, self.layout, self._trajectory, self._protect = xp, layout, trajectory, protect
        self.position = 0

    def advance(self) -> None:
        """Go one step along the trajectory."""
        self.position += 1

    def loss(self) -> float:
        """Half the squared norm of the weights, a stand-in for the training loss."""
        return 0.5 * float(np.sum(np.square(self._trajectory[self.position], dtype=np.float64)))

    def read_params(self, out: Buckets | None = None) -> Buckets:
        """Copy of the weights; `out` is never reused."""
        return self._split(self._trajectory[self.position])

    def add_params(self, into: Buckets, weight: float = 1.0, decay: float = 1.0) -> Buckets:
        """``decay * into + weight * params`` as new arrays."""
        pairs = zip(into, self.read_params(), strict=True)
        return tuple(self._protect(decay * a + weight * b) for a, b in pairs)

    def _split(self, flat: Vector) -> Buckets:
        buckets, start = [], 0
        for size in self.layout.bucket_sizes:
            values = np.array(flat[start : start + size], dtype=np.float32)
            buckets.append(self._protect(self.xp.asarray(values.tolist(), dtype=self.xp.float32)))
            start += size
        return tuple(buckets)


def synthetic_history(
    xp: ModuleType,
    layout: ParamLayout,
    trajectory: Sequence[Vector],
    *,
    config: HistoryConfig | None = None,
    needs: Iterable[str] = NEEDS,
    observe: Callable[[StepRecord], None] | None = None,
    protect: Callable[[Any], Any] = lambda array: array,
) -> History:
    """A real `History` that has seen a trajectory, as the engine would have shown it.

    Args:
        xp: Array namespace of the buckets.
        layout: Layout of the weights.
        trajectory: Flat float32 weights, shape (layout.total,), before the first step and after each.
        config: Window length and number of windows; three windows of four steps if None.
        needs: What the history keeps.
        observe: Called with the record of each step, like `Predictor.observe`.
        protect: Applied to each array that the history is given.

    Example:
        >>> from array_api_compat import numpy as xp
        >>> layout = layout_of_two_buckets()
        >>> history = synthetic_history(xp, layout, straight_line(layout.total, 12))
        >>> len(history.window_means), round(history.straightness(), 6)
        (3, 1.0)
    """
    history = History(layout, xp, config or HistoryConfig(window=4, windows=3), needs)
    player = TrajectoryAdapter(xp, layout, trajectory, protect)
    adapter = cast(Adapter, player)
    for step in range(1, len(trajectory)):
        loss = player.loss()
        history.before_step(adapter)
        player.advance()
        history.after_step(adapter)
        if observe is not None:
            observe(StepRecord(step, Phase.FULL, loss, math.sqrt(2.0 * loss), 0.1, 0.01))
    for mean in history.window_means:
        for array in mean:
            protect(array)
    return history
