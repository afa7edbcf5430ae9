"""The trial of a kernel set: each operation on arrays made for it, compared with the reference, and timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import attrs
import numpy as np

from hybridcore.kernels.reference import REFERENCE
from hybridcore.layout import Array, Buckets, ParamGroup
from hybridcore.protocols import EncodedBuckets, Ensemble, KernelSet

__all__ = ["ELEMENTS", "Sample", "same", "seconds"]

ELEMENTS = 1 << 23
"""Most numbers per array in a trial: 32 MiB each, enough to tell bandwidth from launch cost."""

TOLERANCE = 1e-4
"""Largest difference from the reference that counts as rounding, relative to the largest number."""


@attrs.frozen
class Sample:
    """Arrays for a trial and the calls that are tried on them.

    Attributes:
        xp: Array namespace.
        calls: Operation to a call of it on a kernel set.
    """

    xp: ModuleType
    calls: Mapping[str, Callable[[KernelSet], Any]]

    @classmethod
    def make(cls, xp: ModuleType, like: Array, count: int) -> Sample:
        """Arrays of `count` numbers on the device of `like`, filled without a transfer from the host.

        Args:
            xp: Array namespace.
            like: Any float32 array on the device.
            count: Numbers per array; the last run is short and begins at an odd place.
        """
        count = max(8, count)

        def wave(frequency: float, *shape: int) -> Array:
            places = xp.arange(math.prod(shape), dtype=xp.float32, device=like.device)
            return xp.reshape(xp.sin(places * frequency), shape)

        vectors: list[Buckets] = [(wave(f, count),) for f in (0.7, 1.1, 1.3)]
        a, b, c = vectors
        runs = [(ParamGroup.MATRIX, 0, slice(0, count - 5)), (ParamGroup.BIAS, 0, slice(count - 5, count))]
        scales = {ParamGroup.MATRIX: 0.5, ParamGroup.BIAS: 2.0}
        coded = REFERENCE.encode(a, "bfloat16", 1, xp)
        side = max(4, min(512, math.isqrt(count)))
        flat = xp.matmul(wave(0.7, side, 4), wave(1.3, 4, side))
        sizes = {"inputs": (6, 192), "recurrent": (64, 192), "input_bias": (192,), "recurrent_bias": (192,)}
        sizes |= {"readout": (64, 4), "readout_bias": (4,)}
        models = Ensemble(**{name: wave(1.7, 5, *shape) * 0.1 for name, shape in sizes.items()})
        actions, hidden, output = wave(0.3, 20, 2, 2), wave(0.5, 5, 2, 64), wave(0.9, 5, 2, 4)
        calls: dict[str, Callable[[KernelSet], Any]] = {
            "products": lambda k: k.products(a, b, xp),
            "distance": lambda k: k.distance(a, b, xp),
            "gram": lambda k: k.gram(vectors, xp),
            "combine": lambda k: k.combine(vectors, [0.5, -1.25, 2.0], xp),
            "window_mean": lambda k: k.window_mean(a, 10, b, xp),
            "displace": lambda k: k.displace(a, b, c, xp),
            "run_norms": lambda k: k.run_norms(a, runs, xp),
            "apply_jump": lambda k: k.apply_jump(a, b, runs, scales, 0.8, xp),
            "encode": lambda k: (k.encode(a, "bfloat16", 1, xp), k.encode(a, "int8", 1, xp)),
            "decode": lambda k: k.decode(coded, xp),
            "compress": lambda k: _Product(k.compress(flat, 4, 1, xp)),
            "rollout": lambda k: k.rollout(models, hidden, actions, output, xp),
        }
        return cls(xp, calls)


class _Product(tuple[Any, ...]):
    """Two factors that are compared by their product, since each is unique only up to signs."""


def same(sample: Sample, got: Any, expected: Any) -> bool:
    """Whether two results of one operation differ by rounding at most."""
    pairs = list(zip(_numbers(sample.xp, got), _numbers(sample.xp, expected), strict=False))
    if len(list(_numbers(sample.xp, got))) != len(list(_numbers(sample.xp, expected))) or not pairs:
        return False
    for mine, right in pairs:
        if tuple(mine.shape) != tuple(right.shape):
            return False
        if math.prod(right.shape) == 0:
            continue
        gap = float(sample.xp.max(sample.xp.abs(mine - right)))
        if not gap <= TOLERANCE * float(sample.xp.max(sample.xp.abs(right))):
            return False
    return True


def _numbers(xp: ModuleType, result: Any) -> Iterator[Array]:
    """Every array of a result in float32, numbers as arrays."""
    if isinstance(result, _Product):
        yield xp.matmul(*result)
    elif isinstance(result, EncodedBuckets):
        yield from REFERENCE.decode(result, xp)
    elif isinstance(result, Mapping):
        yield xp.asarray([float(result[key]) for key in sorted(result)], dtype=xp.float32)
    elif isinstance(result, np.ndarray) and xp is not np and result.dtype == np.float64:
        yield xp.asarray(result.astype(np.float32).ravel().tolist(), dtype=xp.float32)
    elif isinstance(result, tuple | list):
        for part in result:
            yield from _numbers(xp, part)
    elif isinstance(result, float):
        yield xp.asarray([result], dtype=xp.float32)
    elif result is not None:
        yield result


def seconds(call: Callable[[], Any], synchronize: Callable[[], None], repeats: int = 5) -> float:
    """Median seconds of a call, the device's work included, after one call that warms up."""
    call()
    taken = []
    for _ in range(repeats):
        synchronize()
        started = time.perf_counter()
        call()
        synchronize()
        taken.append(time.perf_counter() - started)
    return sorted(taken)[repeats // 2]
