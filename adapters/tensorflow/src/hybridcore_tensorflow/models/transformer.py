"""Decoder-only transformer, pre-norm, with a causal mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from hybridcore_tensorflow.models.built import BuiltModel, Dense, as_tensors
from hybridcore_tensorflow.models.norm import LayerNorm

__all__ = ["Transformer", "build_transformer", "language_model"]


class Embedding(tf.Module):
    """Table of vectors.

    Args:
        count: Rows.
        width: Size of each.
        trainable: Whether the table is trained.
    """

    def __init__(self, count: int, width: int, trainable: bool = True) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.zeros((count, width)), trainable=trainable)


class Attention(tf.Module):
    """Causal multi-head self-attention.

    Args:
        width: Model width.
        heads: Heads; divide `width`.
        trainable: Whether its weights are trained.
    """

    def __init__(self, width: int, heads: int, trainable: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Dense(width, 3 * width, trainable=trainable)
        self.out = Dense(width, width, trainable=trainable)

    def __call__(self, inputs: Any) -> Any:
        """Mix positions of inputs (n, context, width); each sees itself and those before it."""
        context, width = inputs.shape[1:]
        size = width // self.heads
        parts = tf.reshape(self.qkv(inputs), (-1, context, 3, self.heads, size))
        query, key, value = tf.unstack(tf.transpose(parts, (2, 0, 3, 1, 4)))
        scores = tf.matmul(query, key, transpose_b=True) / math.sqrt(size)
        seen = tf.linalg.band_part(tf.ones((context, context), tf.bool), -1, 0)
        weights = tf.nn.softmax(tf.where(seen, scores, tf.constant(-math.inf, scores.dtype)))
        mixed = tf.transpose(tf.matmul(weights, value), (0, 2, 1, 3))
        return self.out(tf.reshape(mixed, (-1, context, width)))


def gelu(inputs: Any) -> Any:
    """``x Phi(x)`` (Hendrycks and Gimpel 2016) in the inputs' precision.

    `tf.nn.gelu` rounds the root of one half to float32 on its way to float64.

    Example:
        >>> bool(abs(gelu(tf.constant(1.0, tf.float64)) - 0.5 * math.erfc(-math.sqrt(0.5))) < 1e-15)
        True
    """
    return 0.5 * inputs * tf.math.erfc(-tf.constant(math.sqrt(0.5), inputs.dtype) * inputs)


class FeedForward(tf.Module):
    """Two affine layers with GELU, four times as wide inside.

    Args:
        width: Model width.
        trainable: Whether its weights are trained.
    """

    def __init__(self, width: int, trainable: bool = True) -> None:
        super().__init__()
        self.up = Dense(width, 4 * width, trainable=trainable)
        self.down = Dense(4 * width, width, trainable=trainable)

    def __call__(self, inputs: Any) -> Any:
        """Transform each position of inputs (n, context, width)."""
        return self.down(gelu(self.up(inputs)))


class Block(tf.Module):
    """Attention and feed-forward, each on normalised inputs and added to the residual stream.

    Args:
        width: Model width.
        heads: Attention heads.
        trainable: Whether its weights are trained.
    """

    def __init__(self, width: int, heads: int, trainable: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(width, trainable), LayerNorm(width, trainable)
        self.attention = Attention(width, heads, trainable)
        self.mlp = FeedForward(width, trainable)

    def __call__(self, stream: Any) -> Any:
        """Residual stream (n, context, width) after this block."""
        stream = stream + self.attention(self.norm1(stream))
        return stream + self.mlp(self.norm2(stream))


class Transformer(tf.Module):
    """Token and position embeddings, blocks, a last norm and an untied head without bias.

    Args:
        vocabulary: Number of tokens.
        context: Longest sequence.
        width: Model width.
        depth: Blocks.
        heads: Attention heads.
        trainable: Whether the weights are trained; TensorFlow decides it when a variable is made.

    Example:
        >>> model = Transformer(vocabulary=11, context=8, width=16, depth=1, heads=2)
        >>> tuple(model(tf.zeros((3, 8), tf.int64)).shape)
        (3, 8, 11)
    """

    def __init__(
        self, vocabulary: int, context: int, width: int, depth: int, heads: int, trainable: bool = True
    ) -> None:
        super().__init__()
        self.token_embedding = Embedding(vocabulary, width, trainable)
        self.position_embedding = Embedding(context, width, trainable)
        self.blocks = [Block(width, heads, trainable) for _ in range(depth)]
        self.norm = LayerNorm(width, trainable)
        self.head = Dense(width, vocabulary, bias=False, trainable=trainable)

    def __call__(self, tokens: Any) -> Any:
        """Logits (n, context, vocabulary) of the next token after each of tokens (n, context)."""
        stream = tf.gather(self.token_embedding.weight, tokens)
        stream += self.position_embedding.weight[: tokens.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream))


def _loss(model: Any, batch: Any) -> Any:
    """Mean cross-entropy over the tokens of each sequence, shape (n,)."""
    tokens, targets = as_tensors(batch)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, model(tokens))
    return tf.reduce_mean(losses, 1)


def _sums(model: Any, batch: Any) -> tuple[Any, ...]:
    losses = _loss(model, batch)
    return tf.reduce_sum(losses), tf.size(losses)


def language_model(model: Any) -> BuiltModel:
    """A language model: one loss per sequence, the mean over its tokens.

    Args:
        model: Maps tokens (n, context) to logits (n, context, vocabulary); batches are ``(tokens, next
            tokens)``.
    """
    return BuiltModel(model, _loss, _sums, lambda totals: {"loss": totals[0] / totals[1]})


def build_transformer(shape: Mapping[str, Any]) -> BuiltModel:
    """Language model of ``shape``: vocabulary, context, width, depth, heads; one loss per sequence."""
    return language_model(
        Transformer(shape["vocabulary"], shape["context"], shape["width"], shape["depth"], shape["heads"])
    )
