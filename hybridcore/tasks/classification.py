"""From images and classes to the splits of a classification problem."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.tasks.batches import Batch, ShuffledBatches, batches_of, split_indices
from hybridcore.tasks.data import Images

__all__ = ["Splits", "image_splits"]

PROBE_BATCHES = 8
"""Held-out batches of the training batch size, at most; fewer where examples are short."""

VALIDATION_BATCH = 500


@attrs.frozen
class Splits:
    """Training stream and held-out batches of ``(inputs, classes)``; no example is in two of them.

    Attributes:
        batches: Endless shuffled training batches.
        probes: Batches for probes.
        validation: Batches for evaluation.
    """

    batches: ShuffledBatches
    probes: tuple[Batch, ...]
    validation: tuple[Batch, ...]


def image_splits(
    data: Images,
    *,
    scale: float,
    flat: bool,
    probes: int,
    validation: int,
    batch_size: int,
    seed: int,
    indices: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> Splits:
    """Split images; batches are float32 inputs in [0, 1] and int64 classes (n,).

    Args:
        data: Images (n, height, width) and classes (n,).
        scale: Largest pixel value.
        flat: Inputs of shape (n, height * width) instead of (n, height, width).
        probes: Examples for probes.
        validation: Examples for validation.
        batch_size: Examples per training and probe batch.
        seed: Seeds the order of training examples, not the split.
        indices: A split of your own, ``(training, probes, validation)``.
    """
    images, labels = data
    shape: tuple[Any, ...] = (len(images), -1) if flat else images.shape
    inputs = (images.reshape(shape) / np.float32(scale)).astype(np.float32)

    def gather(index: NDArray[np.int64]) -> Batch:
        return inputs[index], labels[index]

    training, probing, validating = indices or split_indices(len(images), probes, validation)
    return Splits(
        ShuffledBatches(lambda index: gather(training[index]), training.size, batch_size, seed),
        batches_of(gather, probing, batch_size)[:PROBE_BATCHES],
        batches_of(gather, validating, VALIDATION_BATCH),
    )
