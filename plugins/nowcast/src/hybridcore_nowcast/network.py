"""The network of `nowcast`: a small per-weight MLP, conditioned per tensor on statistics and horizon."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Array, ParamSpec
from hybridcore_nowcast.arrays import Constants, stack
from hybridcore_nowcast.errors import CheckpointError
from hybridcore_nowcast.statistics import TensorStatistics, context_size

__all__ = ["FORMAT", "Network", "NowcastNetwork", "inputs", "shapes"]

FORMAT = "hybridcore-nowcast-1"
"""Value of the key ``format`` in a checkpoint's metadata."""

_FLOOR = 1e-3
"""Share of the tensor's speed below which a weight counts as still."""

Displacement = Callable[[slice], Array]
"""From a slice of a tensor to the displacement of its weights."""


class Network(Protocol):
    """What the predictor asks of a network.

    Attributes:
        snapshots: Snapshots it looks at.
        furthest: Snapshot spacings that it may be asked to look ahead.
    """

    snapshots: int
    furthest: float

    def bind(
        self, spec: ParamSpec, path: Sequence[Array], windows: float, xp: ModuleType, chunk: int
    ) -> Displacement:
        """Look at one tensor as a whole.

        Args:
            spec: The parameter.
            path: Its snapshots, 1-D, oldest first; two at least, and `snapshots` at most.
            windows: Snapshot spacings to look ahead.
            xp: Array namespace.
            chunk: Most weights worked on at once.
        """
        ...


def inputs(rows: Array, statistics: TensorStatistics, xp: ModuleType) -> tuple[Array, Array]:
    """What the network sees of each weight, and the weight's own speed.

    With the tensor's mean mu, spread sigma and speed s, and a weight's snapshots m and displacements d, the
    inputs are ``(m - mu) / sigma`` (as in NiNo), ``d / r`` with r the root mean square of d plus ``0.001 s``
    (as in WNN, which scales by each weight's own range), and ``log(r / s)``.

    Args:
        rows: Snapshots, shape (K, n), oldest first.
        statistics: Of the whole tensor.
        xp: Array namespace.

    Returns:
        Inputs, shape (2 K, n), and r, shape (n,).
    """
    speed = statistics.speed + 1e-30
    steps = (rows[1:, :] - rows[:-1, :]) / speed
    own = xp.sqrt(xp.mean(steps * steps, axis=0)) + _FLOOR
    placed = (rows - statistics.mean) / (statistics.std + 1e-6)
    return xp.concat([placed, steps / own, xp.log(own)[None, :]]), own * speed


def shapes(snapshots: int, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    """Arrays of a network by name: `width` per-weight units, `hidden` units of the conditioning part."""
    modulation = 2 * width + snapshots - 1
    return {
        "condition.0.weight": (hidden, context_size(snapshots) + 2),
        "condition.0.bias": (hidden,),
        "condition.1.weight": (modulation, hidden),
        "condition.1.bias": (modulation,),
        "weight.0.weight": (width, 2 * snapshots),
        "weight.1.weight": (width, width),
        "weight.1.bias": (width,),
        "weight.2.weight": (1, width),
    }


class NowcastNetwork:
    """The network that this project trains.

    Per tensor, a layer of tanh units reads the tensor's statistics and the logarithm of the horizon and gives
    scale a and shift b of the first per-weight layer (FiLM, Perez et al. 2018) and coefficients c of a linear
    path. Per weight with inputs x, displacements u in units of the weight's speed r::

        h = tanh(a * (A x) + b),   g = c . u + v . tanh(B h + e),   displacement = r * windows * g

    Args:
        arrays: Arrays as `shapes` names them.
        furthest: Snapshot spacings it was trained to look ahead.

    Raises:
        CheckpointError: Arrays are missing, have wrong shapes, or are not finite.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], furthest: float) -> None:
        self._arrays = {name: np.asarray(value, dtype=np.float64) for name, value in arrays.items()}
        self.snapshots = self._check()
        self.furthest = furthest
        self._constants = Constants(
            {k: v for k, v in self._arrays.items() if k.startswith("weight.") and k != "weight.0.weight"}
        )

    def _check(self) -> int:
        first, hidden = self._arrays.get("weight.0.weight"), self._arrays.get("condition.0.bias")
        found = {name: tuple(value.shape) for name, value in self._arrays.items()}
        if first is not None and hidden is not None and first.ndim == 2 and first.shape[1] >= 6:
            snapshots = int(first.shape[1]) // 2
            if found == shapes(snapshots, int(hidden.shape[0]), int(first.shape[0])):
                if all(np.isfinite(value).all() for value in self._arrays.values()):
                    return snapshots
                raise CheckpointError(
                    "a network's weights are not finite", where="checkpoint", fix="train it again"
                )
        raise CheckpointError(
            "a checkpoint does not hold the arrays of a nowcast network",
            where="checkpoint",
            got=found,
            expected=f"{', '.join(shapes(5, 1, 1))}, with shapes that fit together",
            fix="write it with training/train.py",
        )

    def condition(self, statistics: TensorStatistics, windows: float) -> NDArray[np.float64]:
        """Scale, shift and linear coefficients for a tensor and a horizon, one after the other."""
        w, ahead = self._arrays, math.log(windows)
        seen = np.concatenate([statistics.context(), [ahead / 2.0, (ahead / 2.0) ** 2]])
        hidden = np.tanh(w["condition.0.weight"] @ seen + w["condition.0.bias"])
        made: NDArray[np.float64] = w["condition.1.weight"] @ hidden + w["condition.1.bias"]
        return made

    def bind(
        self, spec: ParamSpec, path: Sequence[Array], windows: float, xp: ModuleType, chunk: int
    ) -> Displacement:
        """See `Network.bind`."""
        statistics = TensorStatistics.of(path, xp, chunk, self.snapshots)
        if statistics.speed == 0.0:  # a tensor that nothing moves
            return lambda part: 0.0 * path[-1][part]
        width = self._arrays["weight.1.bias"].shape[0]
        made = self.condition(statistics, windows)
        scale, shift, linear = made[:width], made[width : 2 * width], made[2 * width :]
        own = Constants(
            {
                "first": scale[:, None] * self._arrays["weight.0.weight"],
                "shift": shift[:, None],
                "linear": linear[None, :],
            }
        ).beside(path[-1], xp)
        w = self._constants.beside(path[-1], xp)
        k = self.snapshots

        def displacement(part: slice) -> Array:
            x, speed = inputs(stack(path, part, xp, k), statistics, xp)
            h = xp.tanh(xp.matmul(own["first"], x) + own["shift"])
            h = xp.tanh(xp.matmul(w["weight.1.weight"], h) + w["weight.1.bias"][:, None])
            moved = xp.matmul(own["linear"], x[k : 2 * k - 1, :]) + xp.matmul(w["weight.2.weight"], h)
            return moved[0, :] * (speed * windows)

        return displacement
