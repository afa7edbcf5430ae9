"""Small convolutional classifier with batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hybridcore_jax.models.built import BuiltModel, Params, affine, classification

__all__ = ["build_cnn"]

MOMENTUM = 0.1
"""Share of the batch in new running statistics."""

EPSILON = 1e-5


def _batch_norm(
    params: Params, name: str, hidden: jax.Array, state: Any, learn: bool, own: bool
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Normalise (n, h, w, c) over all axes but the last.

    Args:
        params: All parameters.
        name: Name of the layer.
        hidden: Inputs.
        state: Running statistics.
        learn: Update the running statistics; their variance is the unbiased one.
        own: Normalise by the batch's own statistics, with the biased variance.
    """
    mean, variance = state[f"{name}.mean"], state[f"{name}.var"]
    new = {f"{name}.mean": mean, f"{name}.var": variance}
    if own:
        axes = (0, 1, 2)
        count = hidden.size // hidden.shape[-1]
        batch_mean, batch_variance = hidden.mean(axes), hidden.var(axes)
        if learn:
            unbiased = batch_variance * (count / max(count - 1, 1))
            new = {
                f"{name}.mean": (1.0 - MOMENTUM) * mean + MOMENTUM * batch_mean,
                f"{name}.var": (1.0 - MOMENTUM) * variance + MOMENTUM * unbiased,
            }
        mean, variance = batch_mean, batch_variance
    scale = params[f"{name}.weight"] * jax.lax.rsqrt(variance + EPSILON)
    return (hidden - mean) * scale + params[f"{name}.bias"], new


def _convolve(params: Params, name: str, hidden: jax.Array) -> jax.Array:
    """3x3 convolution of (n, h, w, c) with padding 1; the weight is stored (out, in, 3, 3)."""
    return jax.lax.conv_general_dilated(
        hidden,
        params[f"{name}.weight"].transpose(2, 3, 1, 0),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def build_cnn(shape: Mapping[str, Any]) -> BuiltModel:
    """Classifier of ``shape``: filters, size, classes, dropout, and optionally smooth.

    Blocks of biasless 3x3 convolution, batch norm, ReLU and 2x2 max pooling (SiLU and average pooling if
    smooth); dropout; one linear layer. Images have shape (n, size, size).
    """
    filters, dropout = tuple(shape["filters"]), float(shape["dropout"])
    smooth = bool(shape.get("smooth", False))
    blocks = range(len(filters))

    def logits(
        params: Params, images: Any, state: Any, key: Any, training: bool, own: bool
    ) -> tuple[jax.Array, Any]:
        hidden = jnp.asarray(images)[..., None]
        new: dict[str, jax.Array] = {}
        for index in blocks:
            hidden = _convolve(params, f"convolutions.{index}", hidden)
            hidden, learned = _batch_norm(params, f"norms.{index}", hidden, state, training, own)
            new |= learned
            n, h, w, c = hidden.shape
            hidden = (jax.nn.silu if smooth else jax.nn.relu)(hidden)[:, : h // 2 * 2, : w // 2 * 2]
            windows = hidden.reshape(n, h // 2, 2, w // 2, 2, c)
            hidden = windows.mean(axis=(2, 4)) if smooth else windows.max(axis=(2, 4))
        flat = hidden.transpose(0, 3, 1, 2).reshape(hidden.shape[0], -1)
        if training and dropout:
            kept = jax.random.bernoulli(key, 1.0 - dropout, flat.shape)
            flat = jnp.where(kept, flat / (1.0 - dropout), 0.0)
        return affine(params, "head", flat), new

    shapes: dict[str, tuple[int, ...]] = {}
    state: dict[str, jax.Array] = {}
    for index, (channels, count) in enumerate(zip((1, *filters[:-1]), filters, strict=True)):
        shapes |= {f"convolutions.{index}.weight": (count, channels, 3, 3)}
        shapes |= dict.fromkeys((f"norms.{index}.weight", f"norms.{index}.bias"), (count,))
        state |= {f"norms.{index}.mean": jnp.zeros(count, jnp.float32)}
        state |= {f"norms.{index}.var": jnp.ones(count, jnp.float32)}
    classes, size = shape["classes"], filters[-1] * (shape["size"] >> len(filters)) ** 2
    shapes |= {"head.weight": (classes, size), "head.bias": (classes,)}
    loss_fn, evaluate = classification(logits)
    if dropout:
        return BuiltModel(shapes, loss_fn, evaluate, state, random=True)

    def keyless(
        params: Params, batch: Any, *, state: Any, training: bool, batch_statistics: bool
    ) -> tuple[jax.Array, Any]:
        found: tuple[jax.Array, Any] = loss_fn(
            params, batch, state=state, key=None, training=training, batch_statistics=batch_statistics
        )
        return found

    return BuiltModel(shapes, keyless, evaluate, state)
