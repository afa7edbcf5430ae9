"""Task `logistic`: softmax regression on scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between, choice
from hybridcore.errors import TaskError
from hybridcore.protocols import OptimizerSpec, Problem, TaskRun
from hybridcore.tasks.base import build_problem

__all__ = ["LogisticTask"]


@attrs.frozen(kw_only=True)
class LogisticConfig:
    """Options of the task `logistic`.

    Attributes:
        batch_size: Examples per real step.
        optimizer: ``"sgd"``, ``"momentum"`` or ``"adam"``.
        learning_rate: Learning rate.
    """

    batch_size: int = attrs.field(default=64, validator=between(1, 1000))
    optimizer: str = attrs.field(default="sgd", validator=choice("sgd", "momentum", "adam"))
    learning_rate: float = attrs.field(default=0.01, validator=between(0.0, low_open=True))


class LogisticTask:
    """Convex classification of 8x8 digits: 1,000 training, 400 probe and 397 validation examples.

    Example:
        >>> LogisticTask().name
        'logistic'
    """

    name: ClassVar[str] = "logistic"
    frameworks: ClassVar[tuple[str, ...]] = ("numpy", "torch", "jax", "tensorflow")
    Config: ClassVar[type] = LogisticConfig

    def __init__(self, config: LogisticConfig | None = None) -> None:
        self.config = config or LogisticConfig()

    def problem(self, seed: int) -> Problem:
        """The problem of one seed.

        Raises:
            TaskError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise TaskError(
                "the data of task 'logistic' is not installed",
                where="scikit-learn",
                fix="pip install 'hybridcore[tasks]'",
            ) from error
        c = self.config
        x, y = load_digits(return_X_y=True)
        x, y = (x / 16.0).astype(np.float32), y.astype(np.int64)
        order = np.random.default_rng(0).permutation(len(y))
        train, probe, valid = order[:1000], order[1000:1400], order[1400:]

        def batches() -> Iterator[tuple[Any, ...]]:
            rng = np.random.default_rng(seed)
            while True:
                epoch = rng.permutation(train)
                for start in range(0, len(epoch) - c.batch_size + 1, c.batch_size):
                    rows = epoch[start : start + c.batch_size]
                    yield x[rows], y[rows]

        rng = np.random.default_rng([seed, 1])
        weights = {
            "weight": (0.01 * rng.standard_normal((10, 64))).astype(np.float32),
            "bias": np.zeros(10, np.float32),
        }
        return Problem(
            self.name,
            "softmax",
            {},
            weights,
            OptimizerSpec(c.optimizer, c.learning_rate),
            batches,
            probes=((x[probe[:200]], y[probe[:200]]), (x[probe[200:]], y[probe[200:]])),
            validation=((x[valid], y[valid]),),
        )

    def build(self, framework: str, seed: int, device: str = "cpu", dtype: str = "float32") -> TaskRun:
        """Build it for an installed framework that knows the model."""
        return build_problem(self.problem(seed), framework, device, dtype)
