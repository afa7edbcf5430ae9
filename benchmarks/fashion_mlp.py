"""A task of your own, `benchmarks.fashion_mlp:fashion_mlp`: Fashion-MNIST by the quick-start's MLP.

The data file is an npz with ``x`` (60000, 28, 28) uint8 and ``y`` (60000,):

    [task]
    name = "benchmarks.fashion_mlp:fashion_mlp"
    path = "fashion_mnist.npz"
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from hybridcore.errors import TaskError
from hybridcore.plugins import load_framework
from hybridcore.protocols import Problem, TaskRun
from hybridcore.tasks.classification import image_splits
from hybridcore.tasks.mnist_mlp import MnistMlp
from hybridcore.tasks.weights import linear_layers, weight_rng

VALIDATION = 10_000
PROBES = 1_024


def fashion_mlp(
    framework: str,
    seed: int,
    device: str,
    *,
    path: str,
    validation: int | None = None,
    **options: object,
) -> TaskRun:
    """Train on all but the last 10,000 images, which are held out; probes are taken from before them.

    Args:
        framework: Registry name of the adapter.
        seed: Seeds initial weights and the order of examples.
        device: Device name.
        path: The npz file.
        validation: Evaluate on the first this many of the images held out; on all of them if None.
        **options: Keys of the built-in task `mnist-mlp`.
    """
    problem = fashion_problem(path, seed, validation=validation, **options)
    return load_framework(framework).build(problem, device)


def fashion_problem(path: str, seed: int, *, validation: int | None = None, **options: object) -> Problem:
    """The problem without a framework."""
    config = MnistMlp.Config(**options)  # type: ignore[arg-type]
    widths = (784, *[config.width] * config.depth, 10)
    images, labels = _load(path)
    start = len(images) - VALIDATION
    order = np.random.default_rng(0).permutation(start)
    splits = image_splits(
        (images, labels),
        scale=255.0,
        flat=True,
        probes=PROBES,
        validation=VALIDATION,
        batch_size=config.batch_size,
        seed=seed,
        indices=(order[PROBES:], order[:PROBES], np.arange(start, len(images))[:validation]),
    )
    return Problem(
        name="fashion-mlp",
        model="mlp",
        shape={"widths": widths},
        weights=linear_layers(weight_rng(seed), widths),
        optimizer=config.spec(),
        batches=splits.batches,
        probes=splits.probes,
        validation=splits.validation,
        metrics=("loss", "accuracy"),
    )


@lru_cache(maxsize=1)
def _load(path: str) -> tuple[np.ndarray, np.ndarray]:
    if not Path(path).is_file():
        raise TaskError(
            "the Fashion-MNIST file is not there",
            where="task.path",
            got=path,
            expected="an npz file with arrays x (60000, 28, 28) and y (60000,)",
            fix="set task.path to the file",
        )
    with np.load(path, allow_pickle=False) as file:
        return file["x"].astype(np.uint8), file["y"].astype(np.int64)
