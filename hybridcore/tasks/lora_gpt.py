"""`lora-gpt`: low-rank fine-tuning of a frozen transformer to Python's manual."""

from __future__ import annotations

from typing import ClassVar

import attrs
import numpy as np

from hybridcore.config import between
from hybridcore.protocols import Problem
from hybridcore.tasks.base import BuiltinTask
from hybridcore.tasks.corpus import load_manual
from hybridcore.tasks.pretrained import FineTuningOptions, base_weights
from hybridcore.tasks.stdlib_gpt import text_splits
from hybridcore.tasks.weights import Weights, linear, weight_rng

__all__ = ["LoraGpt", "lora_weights"]

CORRECTED = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
"""Matrices of a block that have a correction."""


@attrs.frozen(kw_only=True)
class LoraGptOptions(FineTuningOptions):
    """Keys of ``[task]`` for `lora-gpt`.

    Attributes:
        rank: Rank of the corrections.
        alpha: Their scale, times the rank.
    """

    rank: int = attrs.field(default=8, validator=between(1))
    alpha: float = attrs.field(default=16.0, validator=between(0.0, low_open=True))


class LoraGpt(BuiltinTask):
    """`finetune-gpt` with a frozen base and trainable corrections ``(alpha / rank) B A`` of its matrices.

    The matrices of attention and feed-forward have corrections (Hu et al., LoRA, ICLR 2022); B starts at
    zero, so that training starts from the base itself. A seed decides A and the order of the examples.

    Args:
        config: Its options.

    Example:
        >>> sorted(lora_weights(0, LoraGpt.Config(depth=1, rank=2)))[:2]
        ['blocks.0.attention.out.lora_a', 'blocks.0.attention.out.lora_b']
    """

    name: ClassVar[str] = "lora-gpt"
    Config = LoraGptOptions

    def __init__(self, config: LoraGptOptions) -> None:
        self.config = config

    def problem(self, seed: int) -> Problem:
        """Data, weights of base and corrections, and optimizer; see `BuiltinTask.problem`."""
        config = self.config
        splits = text_splits(load_manual(), config, seed)
        return Problem(
            name=self.name,
            model="lora-transformer",
            shape={**config.shape, "rank": config.rank, "alpha": config.alpha},
            weights={**base_weights(config), **lora_weights(seed, config)},
            optimizer=config.spec(),
            batches=splits.batches,
            probes=splits.probes,
            validation=splits.validation,
        )


def lora_weights(seed: int, options: LoraGptOptions) -> Weights:
    """Initial corrections: A uniform like a linear layer's weight, B zero.

    Args:
        seed: Run's seed.
        options: Sizes of model and corrections.
    """
    rng, width, rank = weight_rng(seed), options.width, options.rank
    sizes = {
        "attention.qkv": (width, 3 * width),
        "attention.out": (width, width),
        "mlp.up": (width, 4 * width),
        "mlp.down": (4 * width, width),
    }
    weights: Weights = {}
    for block in range(options.depth):
        for name in CORRECTED:
            fan_in, fan_out = sizes[name]
            prefix = f"blocks.{block}.{name}"
            weights[f"{prefix}.lora_a"] = linear(rng, "a", fan_in, rank)["a.weight"]
            weights[f"{prefix}.lora_b"] = np.zeros((fan_out, rank), np.float32)
    return weights
