"""Buckets in fewer bytes: bfloat16, and int8 with a scale per block and stochastic rounding (F65).

Bounds, for a finite number x of a block with largest magnitude m:

- bfloat16, nearest with ties to even: ``|x' - x| <= 2^-8 |x|`` for normal x, no bias to first order;
- int8: ``|x' - x| <= m / 127`` (up to rounding of float32), and the expectation of x' over seeds is x
  (Croci et al., "Stochastic rounding: implementation, error analysis and applications", 2022, section 2).

The same numbers and seed give the same codes wherever division is correctly rounded. XLA's errs by a unit in
the last place (``div.full.f32`` of PTX on a GPU), which moves an int8 code in about a million to the level
beside it; the bounds hold all the same.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from hybridcore.errors import PredictionError
from hybridcore.layout import Array, Buckets
from hybridcore.protocols import EncodedBuckets

__all__ = ["BLOCK", "DTYPES", "decode", "encode", "encoded_bytes"]

BLOCK = 256
"""Numbers that share one scale in int8."""

DTYPES = ("bfloat16", "int8")

_MASK = 0xFFFFFFFF


def encoded_bytes(count: int, dtype: str) -> int:
    """Bytes of `count` numbers: 8, 4, 2, or 1 and a scale per block."""
    if dtype == "int8":
        return count + 4 * -(-count // BLOCK)
    return count * {"float64": 8, "float32": 4, "bfloat16": 2}[dtype]


def encode(buckets: Buckets, dtype: str, seed: int, xp: ModuleType) -> EncodedBuckets:
    """Encode buckets.

    Args:
        buckets: Arrays of shape (n,); float64 ones are rounded to float32 first.
        dtype: ``"bfloat16"`` or ``"int8"``.
        seed: Seeds stochastic rounding; the same seed gives the same codes.
        xp: Array namespace.

    Raises:
        PredictionError: There is no such encoding.

    Example:
        >>> import array_api_compat.numpy as xp
        >>> coded = encode((xp.asarray([1.0, -0.5], dtype=xp.float32),), "bfloat16", 0, xp)
        >>> decode(coded, xp)[0].tolist()
        [1.0, -0.5]
    """
    if dtype in DTYPES:
        buckets = tuple(b if b.dtype == xp.float32 else xp.astype(b, xp.float32) for b in buckets)
    if dtype == "bfloat16":
        return EncodedBuckets(dtype, tuple(_to_bfloat16(b, xp) for b in buckets))
    if dtype != "int8":
        raise PredictionError(
            "there is no such encoding of the history",
            where="history.dtype",
            got=dtype,
            expected=" or ".join(DTYPES),
            fix="choose one of these",
        )
    pairs = [_to_int8(b, seed, index, xp) for index, b in enumerate(buckets)]
    return EncodedBuckets(dtype, tuple(c for c, _ in pairs), tuple(s for _, s in pairs))


def decode(encoded: EncodedBuckets, xp: ModuleType) -> Buckets:
    """Float32 buckets from what `encode` gave."""
    if encoded.dtype == "bfloat16":
        return tuple(_from_bfloat16(c, xp) for c in encoded.codes)
    return tuple(_from_int8(c, s, xp) for c, s in zip(encoded.codes, encoded.scales, strict=True))


def _to_bfloat16(bucket: Array, xp: ModuleType) -> Array:
    if hasattr(xp, "bfloat16"):
        return xp.astype(bucket, xp.bfloat16)
    bits = np.ascontiguousarray(np.asarray(bucket), dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # Rounding up a NaN's payload would give infinity, or even zero.
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return xp.asarray(np.where(nan, quiet, rounded).astype(np.uint16))


def _from_bfloat16(codes: Array, xp: ModuleType) -> Array:
    if hasattr(xp, "bfloat16"):
        return xp.astype(codes, xp.float32)
    return xp.asarray((np.asarray(codes).astype(np.uint32) << np.uint32(16)).view(np.float32))


def _to_int8(bucket: Array, seed: int, index: int, xp: ModuleType) -> tuple[Array, Array]:
    count = int(bucket.shape[0])
    blocks = -(-count // BLOCK)
    padding = xp.zeros((blocks * BLOCK - count,), dtype=xp.float32, device=array_api_compat.device(bucket))
    rows = xp.reshape(xp.concat([bucket, padding]), (blocks, BLOCK))
    if not blocks:
        return xp.astype(bucket, xp.int8), xp.reshape(rows, (0,))
    scales = xp.max(xp.abs(rows), axis=1) * xp.asarray(1.0 / 127.0, dtype=xp.float32)
    safe = xp.where(scales > 0.0, scales, xp.ones_like(scales))
    levels = xp.floor(rows / xp.reshape(safe, (-1, 1)) + _uniforms(blocks, stream_key(seed, index), rows, xp))
    codes = xp.astype(xp.clip(levels, -127.0, 127.0), xp.int8)
    return xp.reshape(codes, (-1,))[:count], scales


def _from_int8(codes: Array, scales: Array, xp: ModuleType) -> Array:
    count, blocks = int(codes.shape[0]), int(scales.shape[0])
    padding = xp.zeros((blocks * BLOCK - count,), dtype=xp.int8, device=array_api_compat.device(codes))
    rows = xp.reshape(xp.concat([codes, padding]), (blocks, BLOCK))
    return xp.reshape(xp.astype(rows, xp.float32) * xp.reshape(scales, (-1, 1)), (-1,))[:count]


def stream_key(seed: int, index: int) -> int:
    """32-bit key of one bucket's random numbers."""
    return int(_mix(int(_mix(seed & _MASK, wide=True)) ^ (index & _MASK), wide=True))


def _uniforms(blocks: int, key: int, like: Array, xp: ModuleType) -> Array:
    """Float32 numbers in [0, 1), shape (blocks, BLOCK): ``mix(mix(block ^ key) + lane) / 2^32``.

    A counter-based generator in the sense of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
    (SC 2011): any number is computed from its place alone, on every device alike.
    """
    # PyTorch has no arithmetic on uint32, JAX no int64 by default; both give the same 32 bits here.
    wide = array_api_compat.is_torch_namespace(xp)
    place: dict[str, Any] = {
        "dtype": xp.int64 if wide else xp.uint32,
        "device": array_api_compat.device(like),
    }
    block, lane = xp.arange(blocks, **place), xp.arange(BLOCK, **place)
    rows = xp.reshape(_mix(block ^ xp.asarray(key, **place), wide=wide), (-1, 1))
    bits = _mix(rows + lane, wide=wide)
    return xp.astype(bits >> 8, xp.float32) * (1.0 / (1 << 24))


def _mix(x: Any, *, wide: bool) -> Any:
    """Permutation of 32-bit integers by xorshift and multiply; both factors lie below 2^31.

    Args:
        x: Python integer, or array of unsigned 32-bit or signed 64-bit integers.
        wide: Whether the integers are wider than 32 bits, so that what overflows must be cut off.
    """
    if wide:
        x = x & _MASK
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    if wide:
        x = x & _MASK
    x = (x ^ (x >> 15)) * 0x735A2D97
    if wide:
        x = x & _MASK
    return x ^ (x >> 15)
