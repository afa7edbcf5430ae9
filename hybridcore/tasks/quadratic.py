"""Task `quadratic`: a noisy quadratic with a known optimum."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between, choice
from hybridcore.protocols import OptimizerSpec, Problem, TaskRun
from hybridcore.tasks.base import build_problem

__all__ = ["QuadraticTask", "noisy_batches"]


@attrs.frozen(kw_only=True)
class QuadraticConfig:
    """Options of the task `quadratic`.

    Attributes:
        size: Parameters.
        condition: Largest over smallest curvature.
        noise: Standard deviation of gradient noise.
        optimizer: ``"sgd"``, ``"momentum"`` or ``"adam"``.
        learning_rate: Learning rate.
    """

    size: int = attrs.field(default=100, validator=between(1))
    condition: float = attrs.field(default=100.0, validator=between(1.0))
    noise: float = attrs.field(default=0.0, validator=between(0.0))
    optimizer: str = attrs.field(default="sgd", validator=choice("sgd", "momentum", "adam"))
    learning_rate: float = attrs.field(default=0.01, validator=between(0.0, low_open=True))


class QuadraticTask:
    """``0.5 (w - w*)^T diag(h) (w - w*)`` with log-spaced h; the batches are empty.

    Example:
        >>> QuadraticTask().problem(0).model
        'quadratic'
    """

    name: ClassVar[str] = "quadratic"
    frameworks: ClassVar[tuple[str, ...]] = ("numpy", "torch", "jax", "tensorflow")
    Config: ClassVar[type] = QuadraticConfig

    def __init__(self, config: QuadraticConfig | None = None) -> None:
        self.config = config or QuadraticConfig()

    def problem(self, seed: int) -> Problem:
        """The problem of one seed."""
        c = self.config
        rng = np.random.default_rng(seed)
        shape = {
            "curvature": np.logspace(-np.log10(c.condition), 0.0, c.size),
            "optimum": rng.standard_normal(c.size),
            "noise": c.noise,
            "rng": rng,
        }
        weights = {"w": (3.0 * rng.standard_normal(c.size)).astype(np.float32)}
        optimizer = OptimizerSpec(c.optimizer, c.learning_rate)
        batch = (np.zeros((1, 1)),)
        return Problem(
            self.name,
            "quadratic",
            shape,
            weights,
            optimizer,
            batches=lambda: itertools.repeat(batch),
            probes=(batch,),
            validation=(batch,),
        )

    def build(self, framework: str, seed: int, device: str = "cpu", dtype: str = "float32") -> TaskRun:
        """Build it for an installed framework that knows the model."""
        return build_problem(self.problem(seed), framework, device, dtype)


def noisy_batches(shape: Mapping[str, Any], batches: Iterable[Any]) -> Iterator[Any]:
    """Batches with the gradient noise of each step, in the order in which the NumPy adapter draws it.

    Without noise the batches as they are. A framework adds the numbers to its gradient; unlike the NumPy
    adapter's own draws they are data, and not repeated after a rollback.

    Args:
        shape: The problem's ``shape``: noise, rng, and optimum for the size.
        batches: The problem's batches.

    Example:
        >>> problem = QuadraticTask(QuadraticConfig(size=3, noise=0.1)).problem(0)
        >>> next(noisy_batches(problem.shape, problem.batches()))[0].shape
        (3,)
    """
    if not shape["noise"]:
        yield from batches
        return
    size = np.asarray(shape["optimum"]).shape
    for _ in batches:
        yield (shape["noise"] * shape["rng"].standard_normal(size),)
