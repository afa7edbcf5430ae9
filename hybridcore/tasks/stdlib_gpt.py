"""`stdlib-gpt`: a byte-level decoder-only transformer on the source of Python's standard library."""

from __future__ import annotations

import math
from typing import ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import between, choice
from hybridcore.errors import TaskError
from hybridcore.protocols import Problem
from hybridcore.tasks.base import BuiltinTask, TrainingOptions
from hybridcore.tasks.batches import Batch, ShuffledBatches, batches_of
from hybridcore.tasks.classification import Splits
from hybridcore.tasks.corpus import Corpus, load_corpus
from hybridcore.tasks.weights import Weights, layer_norm, normal, weight_rng

__all__ = ["StdlibGpt", "TransformerOptions", "text_splits", "transformer_weights"]

VOCABULARY = 256
"""One token per byte."""

PROBE_BATCHES = 8
VALIDATION_BATCHES = 8


@attrs.frozen(kw_only=True)
class TransformerOptions(TrainingOptions):
    """Keys that every language model of the built-in tasks understands.

    Attributes:
        batch_size: Sequences per batch.
        context: Bytes per sequence.
        width: Model width.
        depth: Transformer blocks.
        heads: Attention heads; must divide `width`.
        max_bytes: Corpus size in bytes at which no more files are read.
    """

    optimizer: str = attrs.field(default="adamw", validator=choice("sgd", "momentum", "adam", "adamw"))
    learning_rate: float = attrs.field(default=1e-3, validator=between(0.0, low_open=True))
    batch_size: int = attrs.field(default=16, validator=between(1))
    context: int = attrs.field(default=64, validator=between(2, 1024))
    width: int = attrs.field(default=128, validator=between(1))
    depth: int = attrs.field(default=4, validator=between(1))
    heads: int = attrs.field(default=4, validator=between(1))
    max_bytes: int = attrs.field(default=8_000_000, validator=between(500_000))

    @property
    def shape(self) -> dict[str, int]:
        """Sizes of the model in the adapters' words."""
        return {
            "vocabulary": VOCABULARY,
            "context": self.context,
            "width": self.width,
            "depth": self.depth,
            "heads": self.heads,
        }

    @heads.validator
    def _heads_divide_width(self, attribute: object, value: int) -> None:
        if self.width % value:
            raise ValueError(f"heads must divide width: got {value!r}, expected a divisor of {self.width}")


@attrs.frozen(kw_only=True)
class StdlibGptOptions(TransformerOptions):
    """Keys of ``[task]`` for `stdlib-gpt`."""


class StdlibGpt(BuiltinTask):
    """Next-byte prediction: pre-norm blocks, causal attention, GELU, learned positions, untied head.

    Batches are ``(tokens, next tokens)``, both int64 (n, context). A standard library differs between
    Python builds, so losses compare only on one machine.

    Args:
        config: Its options.

    Example:
        >>> task = StdlibGpt(StdlibGpt.Config(depth=1, max_bytes=500_000))
        >>> next(task.problem(seed=0).batches())[0].shape
        (16, 64)
    """

    name: ClassVar[str] = "stdlib-gpt"
    Config = StdlibGptOptions

    def __init__(self, config: StdlibGptOptions) -> None:
        self.config = config

    def problem(self, seed: int) -> Problem:
        """Data, weights and optimizer; see `BuiltinTask.problem`."""
        config = self.config
        splits = text_splits(load_corpus(config.max_bytes), config, seed)
        return Problem(
            name=self.name,
            model="transformer",
            shape=config.shape,
            weights=transformer_weights(seed, VOCABULARY, config.context, config.width, config.depth),
            optimizer=config.spec(),
            batches=splits.batches,
            probes=splits.probes,
            validation=splits.validation,
            metrics=("loss",),
        )


def text_splits(corpus: Corpus, options: TransformerOptions, seed: int) -> Splits:
    """Batches ``(tokens, next tokens)`` of a text: all its windows shuffled, and windows of held-out parts.

    Args:
        corpus: The text.
        options: Batch size and context.
        seed: Seeds the order of training windows.

    Raises:
        TaskError: A part is shorter than the context.
    """
    shortest = min(part.size for part in (corpus.training, corpus.probes, corpus.validation))
    if shortest <= options.context:
        raise TaskError(
            "the text is too short for this context",
            where="task.context",
            got=f"{shortest} bytes in the smallest split",
            expected=f"more than {options.context}",
            fix="lower task.context, raise task.max_bytes, or use a Python with its library's source",
        )
    windows = _Windows(corpus.training, options.context)
    return Splits(
        ShuffledBatches(windows, len(windows), options.batch_size, seed),
        _held_out(corpus.probes, PROBE_BATCHES, options),
        _held_out(corpus.validation, VALIDATION_BATCHES, options),
    )


def _held_out(text: NDArray[np.uint8], batches: int, options: TransformerOptions) -> tuple[Batch, ...]:
    """Windows spread evenly over `text`."""
    windows = _Windows(text, options.context)
    wanted = min(batches * options.batch_size, len(windows))
    return batches_of(windows, np.arange(wanted) * len(windows) // wanted, options.batch_size)


class _Windows:
    """Non-overlapping windows of a text, each with its bytes shifted by one."""

    def __init__(self, text: NDArray[np.uint8], context: int) -> None:
        self._text, self._context = text, context

    def __len__(self) -> int:
        return max((self._text.size - 1) // self._context, 0)

    def __call__(self, index: NDArray[np.int64]) -> Batch:
        offsets = index[:, None] * self._context + np.arange(self._context + 1)
        window = self._text[offsets].astype(np.int64)
        return np.ascontiguousarray(window[:, :-1]), np.ascontiguousarray(window[:, 1:])


def transformer_weights(seed: int, vocabulary: int, context: int, width: int, depth: int) -> Weights:
    """Initial weights of a decoder-only transformer.

    Deviation 0.02 everywhere, ``0.02 / sqrt(2 * depth)`` for the projections that end in the residual
    stream, zero biases (Radford et al. 2019, section 2.3); logits start near zero, the loss near
    ``ln(vocabulary)``.

    Args:
        seed: Run's seed.
        vocabulary: Tokens.
        context: Positions.
        width: Model width.
        depth: Blocks.
    """
    rng = weight_rng(seed)
    deviation, residual = 0.02, 0.02 / math.sqrt(2 * depth)
    weights: Weights = {
        "token_embedding.weight": normal(rng, deviation, (vocabulary, width)),
        "position_embedding.weight": normal(rng, deviation, (context, width)),
    }
    shapes = {
        "attention.qkv": (3 * width, width, deviation),
        "attention.out": (width, width, residual),
        "mlp.up": (4 * width, width, deviation),
        "mlp.down": (width, 4 * width, residual),
    }
    for block in range(depth):
        for name, (fan_out, fan_in, scale) in shapes.items():
            weights[f"blocks.{block}.{name}.weight"] = normal(rng, scale, (fan_out, fan_in))
            weights[f"blocks.{block}.{name}.bias"] = np.zeros(fan_out, np.float32)
        weights |= layer_norm(f"blocks.{block}.norm1", width) | layer_norm(f"blocks.{block}.norm2", width)
    weights |= layer_norm("norm", width)
    weights["head.weight"] = normal(rng, deviation, (vocabulary, width))
    return weights
