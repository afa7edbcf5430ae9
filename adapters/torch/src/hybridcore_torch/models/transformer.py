"""Decoder-only transformer, pre-norm, with a causal mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hybridcore_torch.models.built import BuiltModel, as_tensors, evaluation_mode

__all__ = ["Transformer", "build_transformer", "language_model"]


class Attention(nn.Module):
    """Causal multi-head self-attention.

    Args:
        width: Model width.
        heads: Heads; divide `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Mix positions of inputs (n, context, width); each sees itself and those before it."""
        n, context, width = inputs.shape
        parts = self.qkv(inputs).view(n, context, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(n, context, width))
        return result


class FeedForward(nn.Module):
    """Two linear layers with GELU, four times as wide inside.

    Args:
        width: Model width.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Transform each position of inputs (n, context, width)."""
        result: Tensor = self.down(nn.functional.gelu(self.up(inputs)))
        return result


class Block(nn.Module):
    """Attention and feed-forward, each on normalised inputs and added to the residual stream.

    Args:
        width: Model width.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = FeedForward(width)

    def forward(self, stream: Tensor) -> Tensor:
        """Residual stream (n, context, width) after this block."""
        stream = stream + self.attention(self.norm1(stream))
        result: Tensor = stream + self.mlp(self.norm2(stream))
        return result


class Transformer(nn.Module):
    """Token and position embeddings, blocks, a last norm and an untied head without bias.

    Args:
        vocabulary: Number of tokens.
        context: Longest sequence.
        width: Model width.
        depth: Blocks.
        heads: Attention heads.

    Example:
        >>> import torch
        >>> model = Transformer(vocabulary=11, context=8, width=16, depth=1, heads=2)
        >>> model(torch.zeros(3, 8, dtype=torch.long)).shape
        torch.Size([3, 8, 11])
    """

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, context, vocabulary) of the next token after each of tokens (n, context)."""
        stream = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.head(self.norm(stream))
        return logits


def _loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy over the tokens of each sequence, shape (n,)."""
    tokens, targets = as_tensors(model, batch)
    logits = model(tokens)
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(dim=1)


def _evaluate(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    total = count = 0.0
    with evaluation_mode(model):
        for batch in batches:
            losses = _loss(model, batch)
            total += float(losses.sum())
            count += len(losses)
    return {"loss": total / count}


def language_model(model: nn.Module) -> BuiltModel:
    """A language model: one loss per sequence, the mean over its tokens.

    Args:
        model: Maps tokens (n, context) to logits (n, context, vocabulary); batches are ``(tokens, next
            tokens)``.
    """
    return BuiltModel(model, _loss, _evaluate)


def build_transformer(shape: Mapping[str, Any]) -> BuiltModel:
    """Language model of ``shape``: vocabulary, context, width, depth, heads; one loss per sequence."""
    return language_model(
        Transformer(shape["vocabulary"], shape["context"], shape["width"], shape["depth"], shape["heads"])
    )
