"""`convection-pinn`: a physics-informed network for a travelling wave."""

from __future__ import annotations

import math
from typing import ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import between
from hybridcore.protocols import Problem
from hybridcore.tasks.base import BuiltinTask
from hybridcore.tasks.batches import Batch
from hybridcore.tasks.full_batch import FullBatch, PinnOptions, golden_points, interior_points
from hybridcore.tasks.weights import glorot_layers, weight_rng

__all__ = ["ConvectionPinn", "travelling_wave"]


@attrs.frozen(kw_only=True)
class ConvectionOptions(PinnOptions):
    """Keys of ``[task]`` for `convection-pinn`.

    Attributes:
        edge_points: Points of the initial line, and as many of the periodic boundary.
        beta: Speed of the wave; larger is harder.
        boundary_weight: Weight of the initial and of the periodic term.
    """

    edge_points: int = attrs.field(default=128, validator=between(1))
    beta: float = attrs.field(default=10.0, validator=between(0.0, low_open=True))
    boundary_weight: float = attrs.field(default=1.0, validator=between(0.0, low_open=True))


class ConvectionPinn(BuiltinTask):
    r"""Solve ``u_t + beta u_x = 0``, ``u(x, 0) = sin x``, periodic in x, by a tanh network.

    The region is x in [0, 2 pi], t in [0, 1], and the solution ``u = sin(x - beta t)`` (Krishnapriyan et al.,
    "Characterizing possible failure modes in physics-informed neural networks", NeurIPS 2021, section 3.1;
    beta from 10 on is where plain training begins to fail). Every batch is the full batch ``(interior (n, 2),
    start (m, 2), u at the start (m,), left edge (m, 2), right edge (m, 2))`` of points (x, t); validation
    adds the exact solution at the interior points, (n,). The loss is the mean squared residual plus
    `boundary_weight` times the mean squared errors of initial value and periodicity. Per-example losses are
    weighted so that their plain mean over all points is this loss.

    Args:
        config: Its options.

    Example:
        >>> first = next(ConvectionPinn(ConvectionPinn.Config()).problem(seed=0).batches())
        >>> [array.shape for array in first]
        [(512, 2), (128, 2), (128,), (128, 2), (128, 2)]
    """

    name: ClassVar[str] = "convection-pinn"
    Config = ConvectionOptions

    def __init__(self, config: ConvectionOptions) -> None:
        self.config = config

    def problem(self, seed: int) -> Problem:
        """Points, weights and optimizer; see `BuiltinTask.problem`. Points do not depend on the seed."""
        config = self.config
        widths = (2, *[config.width] * config.depth, 1)
        n, m = config.points, config.edge_points
        training = _points(0, n, 0, m)
        validation = _points(2 * n, 1024, 2 * m, 256)
        exact = travelling_wave(validation[0].astype(np.float64), config.beta).astype(np.float32)
        return Problem(
            name=self.name,
            model="convection",
            shape={"widths": widths, "beta": config.beta, "boundary_weight": config.boundary_weight},
            weights=glorot_layers(weight_rng(seed), widths),
            optimizer=config.spec(),
            batches=FullBatch(training),
            probes=(training if config.probe_points == "training" else _points(n, n, m, m),),
            validation=((*validation, exact),),
            metrics=("loss", "relative_l2"),
        )


def _points(start: int, count: int, edge_start: int, edge_count: int) -> Batch:
    interior = interior_points(start, count) * np.array([2.0 * math.pi, 1.0])
    along, zeros = golden_points(edge_start, edge_count), np.zeros(edge_count)
    # The initial value belongs to the points as the model sees them, rounded to float32.
    initial = np.stack([2.0 * math.pi * along, zeros], axis=1).astype(np.float32).astype(np.float64)
    left, right = np.stack([zeros, along], axis=1), np.stack([zeros + 2.0 * math.pi, along], axis=1)
    arrays = (interior, initial, np.sin(initial[:, 0]), left, right)
    return tuple(array.astype(np.float32) for array in arrays)


def travelling_wave(points: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """``sin(x - beta t)`` at points (x, t), shape (n, 2); gives (n,)."""
    value: NDArray[np.float64] = np.sin(points[:, 0] - beta * points[:, 1])
    return value
