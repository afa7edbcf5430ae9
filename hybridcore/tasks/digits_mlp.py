"""`digits-mlp`: a small multilayer perceptron on scikit-learn's 8x8 digits."""

from __future__ import annotations

from typing import ClassVar

import attrs

from hybridcore.config import between
from hybridcore.protocols import Problem
from hybridcore.tasks.base import BuiltinTask, TrainingOptions
from hybridcore.tasks.classification import image_splits
from hybridcore.tasks.data import digits
from hybridcore.tasks.weights import linear_layers, weight_rng

__all__ = ["DigitsMlp"]


@attrs.frozen(kw_only=True)
class DigitsOptions(TrainingOptions):
    """Keys of ``[task]`` for `digits-mlp`.

    Attributes:
        batch_size: Examples per batch.
        width: Units of each hidden layer.
        depth: Hidden layers.
    """

    learning_rate: float = attrs.field(default=0.05, validator=between(0.0, low_open=True))
    batch_size: int = attrs.field(default=32, validator=between(1))
    width: int = attrs.field(default=128, validator=between(1))
    depth: int = attrs.field(default=2, validator=between(1))


class DigitsMlp(BuiltinTask):
    """Classes of 8x8 digits by an MLP 64-128-128-10 with ReLU; 1,237 / 200 / 360 examples.

    Args:
        config: Its options.

    Example:
        >>> DigitsMlp(DigitsMlp.Config(width=32)).problem(seed=0).shape["widths"]
        (64, 32, 32, 10)
    """

    name: ClassVar[str] = "digits-mlp"
    Config = DigitsOptions

    def __init__(self, config: DigitsOptions) -> None:
        self.config = config

    def problem(self, seed: int) -> Problem:
        """Data, weights and optimizer; see `BuiltinTask.problem`."""
        config = self.config
        widths = (64, *[config.width] * config.depth, 10)
        splits = image_splits(
            digits(),
            scale=16.0,
            flat=True,
            probes=200,
            validation=360,
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
