"""Decoder-only transformer, pre-norm, with a causal mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hybridcore_jax.models.built import BuiltModel, Params, affine, evaluator

__all__ = [
    "build_transformer",
    "block_matrices",
    "language_model",
    "transformer_logits",
    "transformer_shapes",
]

EPSILON = 1e-5

Layer = Callable[[Params, str, jax.Array], jax.Array]
"""Output of the linear layer of a name for inputs (..., in)."""


def _norm(params: Params, name: str, stream: jax.Array) -> jax.Array:
    """Layer normalisation over the last axis, with the biased variance."""
    centred = stream - stream.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + EPSILON) * params[f"{name}.weight"] + params[f"{name}.bias"]


def _looked_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of a table (vocabulary, width) of a few hundred rows, as a product with one-hot vectors.

    Indexing would add up the gradient of each row by atomic operations, tens of thousands of them onto the
    rows of a byte-level vocabulary. In bfloat16 on a GPU that took six times as long as the rest of the step.
    """
    return jax.nn.one_hot(tokens, table.shape[0], dtype=table.dtype) @ table


def _mixed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Causal attention of heads, each (n, context, heads, size), in the precision of its inputs.

    `jax.nn.dot_product_attention` takes its softmax in float32, whatever the inputs are.
    """
    scores = jnp.einsum("nqhs,nkhs->nhqk", query, key) / math.sqrt(query.shape[-1])
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("nhqk,nkhs->nqhs", weights, value)


def _attention(params: Params, name: str, inputs: jax.Array, heads: int, layer: Layer) -> jax.Array:
    """Causal multi-head self-attention of inputs (n, context, width)."""
    n, context, width = inputs.shape
    parts = layer(params, f"{name}.qkv", inputs).reshape(n, context, 3, heads, width // heads)
    mixed = _mixed(parts[:, :, 0], parts[:, :, 1], parts[:, :, 2])
    return layer(params, f"{name}.out", mixed.reshape(n, context, width))


def transformer_logits(
    params: Params, tokens: jax.Array, depth: int, heads: int, layer: Layer = affine
) -> jax.Array:
    """Logits (n, context, vocabulary) of the next token after each of tokens (n, context).

    Token and position embeddings; `depth` blocks of attention and GELU feed-forward, each on normalised
    inputs and added to the residual stream; a last norm and an untied head without bias.
    """
    stream = _looked_up(params["token_embedding.weight"], tokens)
    stream = stream + params["position_embedding.weight"][: tokens.shape[1]]
    for index in range(depth):
        block = f"blocks.{index}"
        stream = stream + _attention(
            params, f"{block}.attention", _norm(params, f"{block}.norm1", stream), heads, layer
        )
        inner = layer(params, f"{block}.mlp.up", _norm(params, f"{block}.norm2", stream))
        stream = stream + layer(params, f"{block}.mlp.down", jax.nn.gelu(inner, approximate=False))
    return _norm(params, "norm", stream) @ params["head.weight"].T


def block_matrices(shape: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Name of every linear layer of the blocks, with its shape (out, in)."""
    width = shape["width"]
    matrices = {
        "attention.qkv": (3 * width, width),
        "attention.out": (width, width),
        "mlp.up": (4 * width, width),
        "mlp.down": (width, 4 * width),
    }
    return {f"blocks.{i}.{name}": size for i in range(shape["depth"]) for name, size in matrices.items()}


def transformer_shapes(shape: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter."""
    vocabulary, context, width = shape["vocabulary"], shape["context"], shape["width"]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (vocabulary, width),
        "position_embedding.weight": (context, width),
        "head.weight": (vocabulary, width),
    }
    for name, (fan_out, fan_in) in block_matrices(shape).items():
        shapes |= {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}
    for name in ("norm", *(f"blocks.{i}.norm{j}" for i in range(shape["depth"]) for j in (1, 2))):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


def language_model(
    shape: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], layer: Layer
) -> BuiltModel:
    """A language model: one loss per sequence, the mean over its tokens.

    Args:
        shape: Depth and heads.
        shapes: Shape of each parameter by name.
        layer: What the linear layers of the blocks do.
    """
    depth, heads = shape["depth"], shape["heads"]

    def loss_fn(params: Params, batch: Any) -> jax.Array:
        """Mean cross-entropy over the tokens of each sequence, shape (n,)."""
        tokens, targets = map(jnp.asarray, batch)
        logits = transformer_logits(params, tokens, depth, heads, layer)
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(axis=1)
        return losses

    def sums(params: Params, state: Any, batch: Any) -> dict[str, jax.Array]:
        losses = loss_fn(params, batch)
        return {"loss": losses.sum(), "count": jnp.asarray(losses.size)}

    return BuiltModel(
        shapes,
        loss_fn,
        evaluator(sums, lambda totals: {"loss": totals["loss"] / totals["count"]}),
        embeddings=("token_embedding.weight", "position_embedding.weight"),
    )


def build_transformer(shape: Mapping[str, Any]) -> BuiltModel:
    """Language model of ``shape``: vocabulary, context, width, depth, heads; one loss per sequence."""
    return language_model(shape, transformer_shapes(shape), affine)
