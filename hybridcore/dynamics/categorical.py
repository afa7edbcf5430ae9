"""Categorical latents: sampling with straight-through gradients, and the balanced divergence."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from hybridcore.dynamics.layers import Array

__all__ = ["UNIFORM", "gumbel", "kl_balanced", "sample", "sample_backward"]

UNIFORM = 0.01
"""Share of the uniform distribution in every categorical (Hafner et al. 2023): divergences stay finite."""


def gumbel(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Standard Gumbel noise, NumPy float32: ``argmax(log p + noise)`` draws from p."""
    return rng.gumbel(size=shape).astype(np.float32)


def sample(logits: Array, noise: Array, classes: int, xp: ModuleType) -> tuple[Array, Array]:
    """One-hot draws of each group of `classes` entries, and the probabilities they were drawn from.

    Args:
        logits: Shape (..., groups * classes).
        noise: Gumbel noise of that shape.
        classes: Entries of one group.
        xp: Array namespace.
    """
    shape = logits.shape
    grouped = xp.reshape(logits, (*shape[:-1], -1, classes))
    shifted = xp.exp(grouped - xp.max(grouped, axis=-1, keepdims=True))
    p = (1.0 - UNIFORM) * shifted / xp.sum(shifted, axis=-1, keepdims=True) + UNIFORM / classes
    picked = xp.argmax(xp.log(p) + xp.reshape(noise, p.shape), axis=-1, keepdims=True)
    z = xp.astype(xp.arange(classes) == picked, logits.dtype)
    return xp.reshape(z, shape), xp.reshape(p, shape)


def sample_backward(dz: Array, p: Array, classes: int, xp: ModuleType) -> Array:
    """Gradient for the logits, as if the draw were its probabilities (Bengio et al. 2013)."""
    shape = p.shape
    grouped = xp.reshape(p, (*shape[:-1], -1, classes))
    d = xp.reshape(dz, grouped.shape)
    soft = grouped - UNIFORM / classes  # (1 - UNIFORM) softmax
    inner = xp.sum(d * soft, axis=-1, keepdims=True) / (1.0 - UNIFORM)
    return xp.reshape(soft * (d - inner), shape)


def kl_balanced(
    q: Array, p: Array, free: float, pull_p: float, pull_q: float, xp: ModuleType
) -> tuple[Array, Array, Array]:
    """``pull_p max(free, KL(sg q | p)) + pull_q max(free, KL(q | sg p))``, summed over the batch.

    Hafner et al. 2023, eq. 5; sg stops the gradient, KL is summed over groups.

    Returns:
        The sum, its gradient with respect to q, and to p.
    """
    ratio = xp.log(q) - xp.log(p)
    kl = xp.sum(q * ratio, axis=-1, keepdims=True)
    counts = xp.astype(kl > free, q.dtype)
    total = (pull_p + pull_q) * xp.sum(kl * counts + free * (1.0 - counts))
    return total, pull_q * counts * (ratio + 1.0), -pull_p * counts * q / p
