"""`mnist-cnn`: a small convolutional network with batch normalisation on 5,000 MNIST images."""

from __future__ import annotations

from typing import ClassVar

import attrs

from hybridcore.config import between, choice
from hybridcore.protocols import Problem
from hybridcore.tasks.base import BuiltinTask, TrainingOptions
from hybridcore.tasks.classification import image_splits
from hybridcore.tasks.data import mnist
from hybridcore.tasks.weights import Weights, batch_norm, convolution, linear, weight_rng

__all__ = ["MnistCnn"]


@attrs.frozen(kw_only=True)
class MnistCnnOptions(TrainingOptions):
    """Keys of ``[task]`` for `mnist-cnn`.

    Attributes:
        batch_size: Examples per batch.
        filters: Filters of the first convolution; the second has twice as many.
        dropout: Share of features dropped before the last layer while training.
        smooth: SiLU and average pooling instead of ReLU and max pooling; without their kinks, rounding
            errors stay small, and runs in different frameworks stay together.
    """

    optimizer: str = attrs.field(default="adam", validator=choice("sgd", "momentum", "adam", "adamw"))
    learning_rate: float = attrs.field(default=1e-3, validator=between(0.0, low_open=True))
    batch_size: int = attrs.field(default=64, validator=between(2))
    filters: int = attrs.field(default=8, validator=between(1))
    dropout: float = attrs.field(default=0.0, validator=between(0.0, 1.0, high_open=True))
    smooth: bool = False


class MnistCnn(BuiltinTask):
    """Classes of MNIST images by two blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pooling.

    Inputs have shape (n, 28, 28); the model adds the channel axis where its framework wants it. The
    convolutions have no bias, which batch norm would cancel (Ioffe and Szegedy 2015, section 3.2).

    Args:
        config: Its options.

    Example:
        >>> MnistCnn(MnistCnn.Config()).problem(seed=0).weights["convolutions.1.weight"].shape
        (16, 8, 3, 3)
    """

    name: ClassVar[str] = "mnist-cnn"
    Config = MnistCnnOptions

    def __init__(self, config: MnistCnnOptions) -> None:
        self.config = config

    def problem(self, seed: int) -> Problem:
        """Data, weights and optimizer; see `BuiltinTask.problem`."""
        config = self.config
        filters = (config.filters, 2 * config.filters)
        splits = image_splits(
            mnist(),
            scale=255.0,
            flat=False,
            probes=512,
            validation=1000,
            batch_size=config.batch_size,
            seed=seed,
        )
        return Problem(
            name=self.name,
            model="cnn",
            shape={
                "filters": filters,
                "size": 28,
                "classes": 10,
                "dropout": config.dropout,
                "smooth": config.smooth,
            },
            weights=_weights(seed, filters),
            optimizer=config.spec(),
            batches=splits.batches,
            probes=splits.probes,
            validation=splits.validation,
            metrics=("loss", "accuracy"),
        )


def _weights(seed: int, filters: tuple[int, int]) -> Weights:
    rng = weight_rng(seed)
    weights: Weights = {}
    for index, (channels, count) in enumerate(zip((1, filters[0]), filters, strict=True)):
        weights |= convolution(rng, f"convolutions.{index}", channels, count, 3)
        # Batch norm takes a bias away again: its gradient would be rounding noise, and Adam would step by it.
        # Drawn nevertheless, so that the numbers of the later layers stay what a seed has always given.
        del weights[f"convolutions.{index}.bias"]
        weights |= batch_norm(f"norms.{index}", count)
    return weights | linear(rng, "head", filters[-1] * 7 * 7, 10)
