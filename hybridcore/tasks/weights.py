"""Initial weights in NumPy, so that every framework starts from the same numbers.

Linear and convolutional layers follow PyTorch's defaults: weight and bias uniform in
``[-1/sqrt(fan_in), 1/sqrt(fan_in)]``, which is what ``kaiming_uniform_(a=sqrt(5))`` amounts to (He et al.
2015, "Delving deep into rectifiers"). Shapes follow PyTorch too: (out, in) and (out, in, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Weights",
    "batch_norm",
    "convolution",
    "glorot_layers",
    "layer_norm",
    "linear",
    "linear_layers",
    "normal",
    "weight_rng",
]

Weights = dict[str, NDArray[np.float32]]
"""Float32 arrays by dotted parameter name."""

_WEIGHTS = 0
"""Separates the stream of initial weights from other uses of a seed."""


def weight_rng(seed: int) -> np.random.Generator:
    """Generator of initial weights for a run's seed."""
    return np.random.default_rng(np.random.SeedSequence((seed, _WEIGHTS)))


def _uniform(rng: np.random.Generator, bound: float, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def normal(rng: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zero-mean Gaussian array with standard deviation `deviation`."""
    return (deviation * rng.standard_normal(shape)).astype(np.float32)


def linear(rng: np.random.Generator, prefix: str, fan_in: int, fan_out: int) -> Weights:
    """``<prefix>.weight`` (fan_out, fan_in) and ``<prefix>.bias`` (fan_out,), PyTorch's default."""
    bound = 1.0 / math.sqrt(fan_in)
    return {
        f"{prefix}.weight": _uniform(rng, bound, (fan_out, fan_in)),
        f"{prefix}.bias": _uniform(rng, bound, (fan_out,)),
    }


def linear_layers(rng: np.random.Generator, widths: Sequence[int]) -> Weights:
    """Layers ``layers.0``, ``layers.1``, ... between consecutive `widths`, PyTorch's default."""
    weights: Weights = {}
    for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
        weights |= linear(rng, f"layers.{index}", fan_in, fan_out)
    return weights


def glorot_layers(rng: np.random.Generator, widths: Sequence[int]) -> Weights:
    """Layers between consecutive `widths` for tanh networks: zero biases, Gaussian weights.

    The deviation is ``sqrt(2 / (fan_in + fan_out))`` (Glorot and Bengio 2010).
    """
    weights: Weights = {}
    for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
        deviation = math.sqrt(2.0 / (fan_in + fan_out))
        weights[f"layers.{index}.weight"] = normal(rng, deviation, (fan_out, fan_in))
        weights[f"layers.{index}.bias"] = np.zeros(fan_out, np.float32)
    return weights


def convolution(rng: np.random.Generator, prefix: str, channels: int, filters: int, kernel: int) -> Weights:
    """``<prefix>.weight`` (filters, channels, kernel, kernel) and ``<prefix>.bias``, PyTorch's default."""
    bound = 1.0 / math.sqrt(channels * kernel * kernel)
    return {
        f"{prefix}.weight": _uniform(rng, bound, (filters, channels, kernel, kernel)),
        f"{prefix}.bias": _uniform(rng, bound, (filters,)),
    }


def batch_norm(prefix: str, size: int) -> Weights:
    """Scale ``<prefix>.weight`` of ones and shift ``<prefix>.bias`` of zeros, shape (size,)."""
    return {f"{prefix}.weight": np.ones(size, np.float32), f"{prefix}.bias": np.zeros(size, np.float32)}


layer_norm = batch_norm
"""Layer normalisation starts from the same scale and shift."""
