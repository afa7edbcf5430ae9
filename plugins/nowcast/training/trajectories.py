"""Which trainings the network learns from, which it is judged on, and their paths as means of five steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from types import ModuleType
from typing import Any

import array_api_compat.numpy as xp
import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.components import build_component
from hybridcore.layout import ParamLayout
from hybridcore.plugins import load_registry

BASE = 5
"""Real steps per recorded mean; windows and horizons are multiples of it."""

NAMESPACE: ModuleType = xp


@attrs.frozen
class Training:
    """One training to record.

    Attributes:
        task: Registry name.
        optimizer: Optimizer's name.
        learning_rate: Its learning rate.
        seed: Run's seed.
        options: Further keys of ``[task]``.
    """

    task: str
    optimizer: str
    learning_rate: float
    seed: int
    options: dict[str, Any]

    @property
    def label(self) -> str:
        """Task, optimizer and rate."""
        return f"{self.task} {self.optimizer} {self.learning_rate:g}"


SMALL: dict[str, dict[str, Any]] = {
    "digits-mlp": {"width": 48},
    "mnist-mlp": {"width": 32},
    "mnist-cnn": {"filters": 4},
    "stdlib-gpt": {"width": 32, "depth": 2, "heads": 2, "context": 32, "max_bytes": 600_000},
    "poisson-pinn": {"points": 256, "edge_points": 64},
    "logistic": {},
}
"""Sizes that keep one training within seconds on one core."""

_LEARN: dict[tuple[str, str], tuple[float, ...]] = {
    ("digits-mlp", "sgd"): (0.01, 0.05, 0.2),
    ("digits-mlp", "adam"): (3e-4, 1e-3, 5e-3),
    ("mnist-mlp", "sgd"): (0.003, 0.03, 0.2),
    ("mnist-mlp", "adam"): (1e-4, 1e-3, 3e-3),
    ("stdlib-gpt", "adamw"): (3e-4, 1e-3, 3e-3),
    ("stdlib-gpt", "sgd"): (0.03, 0.3),
    ("poisson-pinn", "adam"): (3e-4, 1e-3, 3e-3),
}

_JUDGE: dict[tuple[str, str], tuple[float, ...]] = {
    ("mnist-cnn", "adam"): (1e-4, 1e-3),
    ("mnist-cnn", "sgd"): (0.01, 0.1),
    ("digits-mlp", "momentum"): (0.001, 0.02),
    ("stdlib-gpt", "momentum"): (0.01, 0.1),
    ("poisson-pinn", "momentum"): (3e-5,),
    ("logistic", "sgd"): (0.01, 0.3),
    ("logistic", "adam"): (0.001, 0.01),
}


def _trainings(rates: dict[tuple[str, str], tuple[float, ...]], seeds: range) -> list[Training]:
    return [
        Training(task, optimizer, rate, seed, SMALL[task])
        for (task, optimizer), chosen in rates.items()
        for rate in chosen
        for seed in seeds
    ]


LEARN = _trainings(_LEARN, range(2))
"""What the network learns from."""

JUDGE = _trainings(_JUDGE, range(100, 101))
"""Held out: two tasks that it never sees, an optimizer that it never sees, other seeds."""


@attrs.frozen
class Path:
    """The path of one training.

    Attributes:
        layout: Where parameters lie; one bucket.
        means: Means of `BASE` successive iterates, shape (n, weights), float32.
        updates: The last single update before the end of each mean, same shape.
    """

    layout: ParamLayout
    means: NDArray[np.float32]
    updates: NDArray[np.float32]

    def mean(self, end: int, width: int) -> NDArray[np.float32]:
        """Mean of the `width` recorded means before index `end`."""
        result: NDArray[np.float32] = self.means[end - width : end].mean(axis=0)
        return result

    def snapshots(self, end: int, width: int, count: int) -> list[NDArray[np.float32]]:
        """Means of `count` successive windows of `width` recorded means, oldest first."""
        return [self.mean(end - width * back, width) for back in reversed(range(count))]


def record(training: Training, steps: int) -> Path:
    """Train and keep the path."""
    cls = load_registry().get("task", training.task)
    options = {"optimizer": training.optimizer, "learning_rate": training.learning_rate, **training.options}
    framework = "torch" if "torch" in cls.frameworks else "numpy"
    run = build_component(cls, options, "task").build(framework, training.seed)
    adapter, means, updates = run.adapter, [], []
    total, before = 0.0, _flat(adapter)
    for step, batch in enumerate(islice(_endless(run.batches), steps), start=1):
        adapter.train_step(batch)
        weights = _flat(adapter)
        total = total + weights.astype(np.float64)
        if step % BASE == 0:
            means.append((total / BASE).astype(np.float32))
            updates.append(weights - before)
            total = 0.0
        before = weights
    return Path(adapter.layout, np.stack(means), np.stack(updates))


def _endless(batches: Any) -> Iterator[Any]:
    return iter(batches)


def _flat(adapter: Any) -> NDArray[np.float32]:
    if len(adapter.layout.bucket_sizes) != 1:
        raise SystemExit("recording needs a model of one dtype on one device")
    (bucket,) = adapter.read_params()
    return np.array(bucket, dtype=np.float32)
