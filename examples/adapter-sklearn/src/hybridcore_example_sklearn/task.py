"""A task for this adapter, named in a configuration as ``hybridcore_example_sklearn.task:digits``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from hybridcore.protocols import TaskRun
from hybridcore_example_sklearn.adapter import SklearnAdapter

__all__ = ["digits"]


def digits(
    framework: str,
    seed: int,
    device: str,
    *,
    width: int = 64,
    learning_rate: float = 0.02,
    batch_size: int = 32,
) -> TaskRun:
    """Classes of 8x8 digits by one hidden layer and SGD with momentum."""
    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    inputs, labels = (inputs[order] / 16.0).astype(np.float32), labels[order]
    train, probe, validation = slice(0, 1200), slice(1200, 1400), slice(1400, None)

    def batches() -> Iterator[tuple[Any, Any]]:
        rng = np.random.default_rng(seed)
        while True:
            rows = rng.choice(1200, batch_size, replace=False)
            yield inputs[train][rows], labels[train][rows]

    stream = batches()
    model = MLPClassifier((width,), solver="sgd", learning_rate_init=learning_rate, random_state=seed)
    adapter = SklearnAdapter(model.partial_fit(*next(stream), classes=np.arange(10)))
    held_out = (inputs[validation], labels[validation])

    def evaluate() -> dict[str, float]:
        return {
            "loss": float(adapter.probe_loss(held_out).mean()),
            "accuracy": float(adapter.model.score(*held_out)),
        }

    return TaskRun(adapter, stream, ((inputs[probe], labels[probe]),), evaluate)
