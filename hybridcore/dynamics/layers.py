"""Layers with hand-written gradients, in Array API code.

All arrays carry a leading axis of ensemble members, so that one batched product serves all of them:
inputs have shape (members, batch, n_in), weights (members, n_in, n_out), biases (members, 1, n_out).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

__all__ = [
    "ACTIVATIONS",
    "dense",
    "dense_backward",
    "gaussian_nll",
    "gru",
    "gru_backward",
    "initial",
    "sigmoid",
]

Array = Any
Arrays = dict[str, Array]

_GELU = math.sqrt(2.0 / math.pi)


def sigmoid(x: Array, xp: ModuleType) -> Array:
    """``1 / (1 + exp(-x))``, written with tanh so that nothing overflows."""
    return 0.5 * (1.0 + xp.tanh(0.5 * x))


def _relu(x: Array, xp: ModuleType) -> tuple[Array, Array]:
    slope = xp.astype(x > 0.0, x.dtype)
    return x * slope, slope


def _tanh(x: Array, xp: ModuleType) -> tuple[Array, Array]:
    y = xp.tanh(x)
    return y, 1.0 - y * y


def _silu(x: Array, xp: ModuleType) -> tuple[Array, Array]:
    s = sigmoid(x, xp)
    return x * s, s * (1.0 + x * (1.0 - s))


def _gelu(x: Array, xp: ModuleType) -> tuple[Array, Array]:
    square = x * x
    t = xp.tanh(_GELU * x * (1.0 + 0.044715 * square))
    slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * _GELU * (1.0 + 3.0 * 0.044715 * square)
    return 0.5 * x * (1.0 + t), slope


ACTIVATIONS: dict[str, Callable[[Array, ModuleType], tuple[Array, Array]]] = {
    "gelu": _gelu,
    "relu": _relu,
    "silu": _silu,
    "tanh": _tanh,
}
"""Name to a function that gives value and derivative; gelu is the tanh form of Hendrycks & Gimpel (2016)."""


def initial(members: int, n_in: int, n_out: int, rng: np.random.Generator, gain: float = 1.0) -> Any:
    """Weights with variance ``gain^2 / n_in``, other ones for each member; NumPy, float32."""
    scale = gain / math.sqrt(n_in)
    return (scale * rng.standard_normal((members, n_in, n_out))).astype(np.float32)


def dense(x: Array, w: Array, b: Array, xp: ModuleType) -> Array:
    """``x w + b``."""
    return xp.matmul(x, w) + b


def dense_backward(dy: Array, x: Array, w: Array, xp: ModuleType) -> tuple[Array, Array, Array]:
    """Gradients with respect to input, weight and bias."""
    dx = xp.matmul(dy, xp.matrix_transpose(w))
    dw = xp.matmul(xp.matrix_transpose(x), dy)
    return dx, dw, xp.sum(dy, axis=1, keepdims=True)


def gru(x: Array, h: Array, p: Arrays, xp: ModuleType) -> tuple[Array, tuple[Array, ...]]:
    """Gated recurrent unit (Cho et al. 2014), gates in the order reset, update, new.

    ``r, z = sigmoid(...)``, ``n = tanh(x W_n + b_n + r (h U_n + c_n))``, ``h' = (1 - z) n + z h``.

    Args:
        x: Input, shape (members, batch, n).
        h: State, shape (members, batch, d).
        p: ``gru_x`` (n to 3 d), ``gru_h`` (d to 3 d) and their biases ``gru_bx``, ``gru_bh``.
        xp: Array namespace.

    Returns:
        The new state, and what `gru_backward` needs.
    """
    size = h.shape[-1]
    a, c = dense(x, p["gru_x"], p["gru_bx"], xp), dense(h, p["gru_h"], p["gru_bh"], xp)
    r = sigmoid(a[..., :size] + c[..., :size], xp)
    z = sigmoid(a[..., size : 2 * size] + c[..., size : 2 * size], xp)
    inner = c[..., 2 * size :]
    n = xp.tanh(a[..., 2 * size :] + r * inner)
    return n + z * (h - n), (x, h, r, z, n, inner)


def gru_backward(
    dh: Array, kept: tuple[Array, ...], p: Arrays, xp: ModuleType
) -> tuple[Array, Array, Arrays]:
    """Gradients with respect to input, former state and parameters."""
    x, h, r, z, n, inner = kept
    dn = dh * (1.0 - z) * (1.0 - n * n)
    dz = dh * (h - n) * z * (1.0 - z)
    dr = dn * inner * r * (1.0 - r)
    dx, wx, bx = dense_backward(xp.concat([dr, dz, dn], axis=-1), x, p["gru_x"], xp)
    back, wh, bh = dense_backward(xp.concat([dr, dz, dn * r], axis=-1), h, p["gru_h"], xp)
    return dx, back + dh * z, {"gru_x": wx, "gru_bx": bx, "gru_h": wh, "gru_bh": bh}


LOG_VARIANCE = 6.0
"""Log variances are kept inside plus and minus this, smoothly."""


def gaussian_nll(
    mean: Array, raw: Array, target: Array, weight: Array, xp: ModuleType
) -> tuple[Array, Array, Array, Array]:
    """``weight (v / 2 + (target - mean)^2 exp(-v) / 2)`` with log variance ``v = 6 tanh(raw / 6)``.

    Returns:
        The losses, their gradients with respect to `mean` and `raw`, and the log variances.
    """
    t = xp.tanh(raw / LOG_VARIANCE)
    log_variance = LOG_VARIANCE * t
    precision = xp.exp(-log_variance)
    miss = mean - target
    square = miss * miss * precision
    losses = 0.5 * weight * (log_variance + square)
    d_raw = 0.5 * weight * (1.0 - square) * (1.0 - t * t)
    return losses, weight * miss * precision, d_raw, log_variance
