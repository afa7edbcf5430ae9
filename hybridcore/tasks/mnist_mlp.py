"""`mnist-mlp`: the multilayer perceptron of widely copied quick-starts, with their cautious optimizer."""

from __future__ import annotations

from typing import ClassVar

import attrs

from hybridcore.config import between
from hybridcore.protocols import Problem
from hybridcore.tasks.base import BuiltinTask, TrainingOptions
from hybridcore.tasks.classification import image_splits
from hybridcore.tasks.data import mnist
from hybridcore.tasks.weights import linear_layers, weight_rng

__all__ = ["MnistMlp"]


@attrs.frozen(kw_only=True)
class MnistMlpOptions(TrainingOptions):
    """Keys of ``[task]`` for `mnist-mlp`.

    Attributes:
        batch_size: Examples per batch.
        width: Units of each hidden layer.
        depth: Hidden layers.
    """

    learning_rate: float = attrs.field(default=1e-3, validator=between(0.0, low_open=True))
    batch_size: int = attrs.field(default=64, validator=between(1))
    width: int = attrs.field(default=512, validator=between(1))
    depth: int = attrs.field(default=2, validator=between(1))


class MnistMlp(BuiltinTask):
    """Classes of 5,000 MNIST images by an MLP 784-512-512-10 with ReLU; 3,488 / 512 / 1,000 examples.

    Shape, batch 64 and plain SGD at 1e-3 are those of PyTorch's quick-start tutorial.

    Args:
        config: Its options.

    Example:
        >>> MnistMlp(MnistMlp.Config()).config.learning_rate
        0.001
    """

    name: ClassVar[str] = "mnist-mlp"
    Config = MnistMlpOptions

    def __init__(self, config: MnistMlpOptions) -> None:
        self.config = config

    def problem(self, seed: int) -> Problem:
        """Data, weights and optimizer; see `BuiltinTask.problem`."""
        config = self.config
        widths = (784, *[config.width] * config.depth, 10)
        splits = image_splits(
            mnist(),
            scale=255.0,
            flat=True,
            probes=512,
            validation=1000,
            batch_size=config.batch_size,
            seed=seed,
        )
        return Problem(
            name=self.name,
            model="mlp",
            shape={"widths": widths},
            weights=linear_layers(weight_rng(seed), widths),
            optimizer=config.spec(),
            batches=splits.batches,
            probes=splits.probes,
            validation=splits.validation,
            metrics=("loss", "accuracy"),
        )
