"""Task `quadratic`: a noisy quadratic with a known optimum, for the NumPy adapter."""

from __future__ import annotations

import itertools
from typing import ClassVar

import attrs
import numpy as np

from hybridcore.config import between, choice
from hybridcore.protocols import OptimizerSpec, Problem, TaskRun

__all__ = ["QuadraticTask"]


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
    frameworks: ClassVar[tuple[str, ...]] = ("numpy", "jax", "tensorflow")
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

    def build(self, framework: str, seed: int, device: str = "cpu") -> TaskRun:
        """Build it for an installed framework that knows the model."""
        from hybridcore.plugins import load_framework

        return load_framework(framework).build(self.problem(seed), device)
