"""What the physics-informed tasks share: the full batch, and points that fill a region evenly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import between, choice
from hybridcore.tasks.base import TrainingOptions
from hybridcore.tasks.batches import Batch

__all__ = ["FullBatch", "PinnOptions", "golden_points", "interior_points"]

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@attrs.frozen(kw_only=True)
class PinnOptions(TrainingOptions):
    """Keys that every physics-informed task understands.

    Attributes:
        optimizer: Also ``"lbfgs"``: up to ten iterations a step with a strong Wolfe line search.
        points: Interior points of the full batch.
        width: Units of each hidden layer.
        depth: Hidden layers.
        probe_points: ``"training"``: probes read the full batch itself, since the loss is deterministic and
            its own points say what a change does to it; ``"held-out"``: other points of the same number.
    """

    optimizer: str = attrs.field(
        default="adam", validator=choice("sgd", "momentum", "adam", "adamw", "lbfgs")
    )
    learning_rate: float = attrs.field(default=1e-3, validator=between(0.0, low_open=True))
    points: int = attrs.field(default=512, validator=between(1))
    width: int = attrs.field(default=32, validator=between(1))
    depth: int = attrs.field(default=3, validator=between(1))
    probe_points: str = attrs.field(default="training", validator=choice("training", "held-out"))


class FullBatch:
    """Endless stream of one batch.

    Args:
        batch: The batch.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __call__(self, position: int = 0) -> Iterator[Batch]:
        """New stream; every position is alike."""
        return itertools.repeat(self._batch)

    def __iter__(self) -> Iterator[Batch]:
        return self()


def interior_points(start: int, count: int) -> NDArray[np.float64]:
    """Points `start` to ``start + count`` of Roberts's R2 sequence in the open unit square, (count, 2).

    Additive recurrence by powers of the inverse plastic number; consecutive stretches cover the square
    evenly and share no point (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
    """
    plastic = 1.324717957244746
    index = np.arange(start, start + count, dtype=np.float64)[:, None]
    points: NDArray[np.float64] = (0.5 + index * np.array([1 / plastic, 1 / plastic**2])) % 1.0
    return points


def golden_points(start: int, count: int) -> NDArray[np.float64]:
    """Points `start` to ``start + count`` of the golden-ratio sequence in the unit interval, (count,)."""
    points: NDArray[np.float64] = (0.5 + np.arange(start, start + count, dtype=np.float64) * _GOLDEN) % 1.0
    return points
