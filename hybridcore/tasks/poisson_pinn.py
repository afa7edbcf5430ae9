"""`poisson-pinn`: a physics-informed network for a Poisson equation whose solution is known."""

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

__all__ = ["PoissonPinn", "boundary_points", "exact_solution", "source_term"]


@attrs.frozen(kw_only=True)
class PoissonOptions(PinnOptions):
    """Keys of ``[task]`` for `poisson-pinn`.

    Attributes:
        edge_points: Boundary points of the full batch.
        waves: Half waves k of the solution along each axis; more are harder.
        boundary_weight: Weight of the boundary term.
    """

    edge_points: int = attrs.field(default=128, validator=between(1))
    waves: int = attrs.field(default=1, validator=between(1))
    boundary_weight: float = attrs.field(default=100.0, validator=between(0.0, low_open=True))


class PoissonPinn(BuiltinTask):
    r"""Solve ``-(u_xx + u_yy) = f`` on the unit square, zero on its edge, by a tanh network.

    The exact solution is ``u = sin(k pi x) sin(k pi y)`` with ``f = 2 (k pi)^2 u``. Every batch is the full
    batch ``(interior (n, 2), f (n,), edge (m, 2), u on the edge (m,))``; validation adds the exact solution
    at the interior points, (n,). The loss is the mean squared residual plus `boundary_weight` times the mean
    squared error on the edge (Raissi et al. 2019). Per-example losses are weighted so that their plain mean
    over all n + m points is this loss.

    Args:
        config: Its options.

    Example:
        >>> first = next(PoissonPinn(PoissonPinn.Config()).problem(seed=0).batches())
        >>> [array.shape for array in first]
        [(512, 2), (512,), (128, 2), (128,)]
    """

    name: ClassVar[str] = "poisson-pinn"
    Config = PoissonOptions

    def __init__(self, config: PoissonOptions) -> None:
        self.config = config

    def problem(self, seed: int) -> Problem:
        """Points, weights and optimizer; see `BuiltinTask.problem`. Points do not depend on the seed."""
        config = self.config
        widths = (2, *[config.width] * config.depth, 1)
        n, m = config.points, config.edge_points
        training = self._points(0, n, 0, m)
        validation = self._points(2 * n, 1024, 2 * m, 256)
        exact = exact_solution(validation[0].astype(np.float64), config.waves).astype(np.float32)
        return Problem(
            name=self.name,
            model="pinn",
            shape={"widths": widths, "boundary_weight": config.boundary_weight},
            weights=glorot_layers(weight_rng(seed), widths),
            optimizer=config.spec(),
            batches=FullBatch(training),
            probes=(training if config.probe_points == "training" else self._points(n, n, m, m),),
            validation=((*validation, exact),),
            metrics=("loss", "relative_l2"),
        )

    def _points(self, start: int, count: int, edge_start: int, edge_count: int) -> Batch:
        # The source belongs to the points as the model sees them, rounded to float32.
        interior = interior_points(start, count).astype(np.float32).astype(np.float64)
        edge = boundary_points(edge_start, edge_count)
        source = source_term(interior, self.config.waves)
        arrays = (interior, source, edge, np.zeros(edge_count))
        return tuple(array.astype(np.float32) for array in arrays)


def boundary_points(start: int, count: int) -> NDArray[np.float64]:
    """Points `start` to ``start + count`` of a golden-ratio sequence along the square's edge, (count, 2)."""
    along = 4.0 * golden_points(start, count)
    side, t = np.floor(along).astype(int), along % 1.0
    x = np.choose(side, [t, np.ones(count), 1.0 - t, np.zeros(count)])
    y = np.choose(side, [np.zeros(count), t, np.ones(count), 1.0 - t])
    return np.stack([x, y], axis=1)


def exact_solution(points: NDArray[np.float64], waves: int) -> NDArray[np.float64]:
    """``sin(k pi x) sin(k pi y)`` at points (n, 2), shape (n,)."""
    value: NDArray[np.float64] = np.sin(waves * math.pi * points).prod(axis=1)
    return value


def source_term(points: NDArray[np.float64], waves: int) -> NDArray[np.float64]:
    """Right-hand side ``2 (k pi)^2 u`` of the equation at points (n, 2), shape (n,)."""
    return 2.0 * (waves * math.pi) ** 2 * exact_solution(points, waves)
