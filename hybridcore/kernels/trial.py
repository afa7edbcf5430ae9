"""The trial of a kernel set: each operation on arrays made for it, compared with the reference, and timed."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

import array_api_compat.numpy as compat_numpy
import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.kernels.host import to_host
from hybridcore.kernels.paths import RolloutCase
from hybridcore.kernels.reference import REFERENCE
from hybridcore.layout import Array, Buckets, ParamGroup
from hybridcore.protocols import EncodedBuckets, KernelSet, RolloutSizes

__all__ = ["ELEMENTS", "JUDGED", "Sample", "difference", "same", "seconds"]

ELEMENTS = 1 << 25
"""Most numbers per array where a kernel is timed: 128 MiB each, so that bandwidth tells."""

JUDGED = (1 << 22) + 3
"""Most numbers per array where a result is judged: enough that every kernel goes round its grid."""

TOLERANCE = 1e-4
"""Largest error that counts as rounding: of arrays relative to the largest number, of an inner product
``a . b`` relative to ``|a| |b|``, since orthogonal vectors leave nothing but rounding."""

LOW_RANK_TOLERANCE = 1e-2
"""The same for low-rank factors: matrix products in a row, whose factors PyTorch rounds to ten bits where its
user allows it (``torch.set_float32_matmul_precision("high")``)."""

TYPICAL = RolloutSizes()
"""Roll-out that is tried where no model says its own sizes."""


@attrs.frozen
class Sample:
    """Arrays for a trial and the calls that are tried on them.

    Attributes:
        xp: Array namespace.
        calls: Operation to a call of it on a kernel set.
        exact: Operation to its result by NumPy in float64; encodings have one result bit for bit, that of the
            reference on the same arrays.
        rounded: Operation to a second result that is as right: that of NumPy, whose division is correctly
            rounded. XLA's is not, see `hybridcore.kernels.encoding`.
    """

    xp: ModuleType
    calls: Mapping[str, Callable[[KernelSet], Any]]
    exact: Mapping[str, Callable[[], Any]]
    rounded: Mapping[str, Callable[[], Any]] = attrs.field(factory=dict)

    @classmethod
    def make(cls, xp: ModuleType, like: Array, count: int, sizes: RolloutSizes | None = TYPICAL) -> Sample:
        """Arrays of `count` numbers on the device of `like`, filled without a transfer from the host.

        Args:
            xp: Array namespace.
            like: A bucket; the trial's arrays lie on its device and have its dtype.
            count: Numbers per array; the last run is short and begins at an odd place.
            sizes: Of the roll-out, whose arguments lie on the host; none is tried if None.
        """
        count = max(8, count)

        def wave(frequency: float, *shape: int, dtype: Any = xp.float32) -> Array:
            places = xp.arange(math.prod(shape), dtype=dtype, device=like.device)
            return xp.reshape(xp.sin(places * frequency), shape)

        side = max(4, min(512, math.isqrt(count)))
        given = {"abc"[i]: wave(f, count, dtype=like.dtype) for i, f in enumerate((0.7, 1.1, 1.3))}
        left, right = wave(0.7, side, 4, dtype=like.dtype), wave(1.3, 4, side, dtype=like.dtype)
        given["flat"] = xp.matmul(left, right)
        test = np.random.default_rng(0).standard_normal((side, min(side, 12)))
        given["test"] = xp.asarray(test, dtype=like.dtype, device=like.device)
        calls = _calls(given, count, xp)
        if sizes is not None:
            case = RolloutCase.decided(sizes)
            calls["rollout"] = case.on
        wide = _lazily(lambda: _calls({n: to_host(x, xp) for n, x in given.items()}, count, compat_numpy))

        def exact(operation: str) -> Callable[[], Any]:
            if operation in ("encode", "decode"):
                return lambda: calls[operation](REFERENCE)
            if operation == "rollout":
                return lambda: case.wide().on(REFERENCE)
            return lambda: wide()[operation](REFERENCE)

        def encoded() -> list[Buckets]:
            return [REFERENCE.decode(coded, compat_numpy) for coded in wide()["encode"](REFERENCE)]

        return cls(xp, calls, {operation: exact(operation) for operation in calls}, {"encode": encoded})


def _calls(given: Mapping[str, Array], count: int, xp: ModuleType) -> dict[str, Callable[[KernelSet], Any]]:
    """All operations on arrays of one namespace."""
    a, b, c = ((given[name],) for name in "abc")
    vectors: list[Buckets] = [a, b, c]
    runs = [(ParamGroup.MATRIX, 0, slice(0, count - 5)), (ParamGroup.BIAS, 0, slice(count - 5, count))]
    coded = _lazily(lambda: REFERENCE.encode(a, "bfloat16", 1, xp))
    return {
        "products": lambda k: _Products(k.products(a, b, xp)),
        "distance": lambda k: k.distance(a, b, xp),
        "gram": lambda k: _Gram(k.gram(vectors, xp)),
        "combine": lambda k: k.combine(vectors, [0.5, -1.25, 2.0], xp),
        "window_mean": lambda k: k.window_mean(a, 10, b, xp),
        "displace": lambda k: _displaced(*k.displace(a, b, c, xp)),
        "run_norms": lambda k: k.run_norms([a, b], runs, xp),
        "encode": lambda k: (k.encode(a, "bfloat16", 1, xp), k.encode(a, "int8", 1, xp)),
        "decode": lambda k: k.decode(coded(), xp),
        "compress": lambda k: _Factors(k.compress(given["flat"], 4, given["test"], 2, xp)),
    }


class _Factors(tuple[Any, ...]):
    """Two factors that are compared by their product, since each is unique only up to signs."""


class _Products(tuple[float, float, float]):
    """``|a|^2``, ``|b|^2`` and ``a . b``, compared relative to ``|a| |b|``."""


class _Gram:
    """Inner products of all pairs, compared relative to the lengths."""

    def __init__(self, products: Any) -> None:
        self.products = np.asarray(products, dtype=np.float64)


def _displaced(step: Buckets, products: Any) -> tuple[Any, ...]:
    return step, None if products is None else _Products(products)


def same(sample: Sample, operation: str, got: Any) -> bool:
    """Whether a result of an operation differs from the exact one by rounding at most."""
    return not difference(sample, operation, got)


def difference(sample: Sample, operation: str, got: Any) -> str:
    """How a result of an operation differs from the exact one by more than rounding; empty where it does not.

    Args:
        sample: What was computed on.
        operation: The operation.
        got: Its result.
    """
    mine, said = list(_numbers(sample.xp, got)), ""
    for makers in (sample.exact, sample.rounded):
        if operation in makers:
            tolerance = LOW_RANK_TOLERANCE if operation == "compress" else TOLERANCE
            now = _apart(mine, list(_numbers(sample.xp, makers[operation]())), tolerance)
            if not now:
                return ""
            said = now
    return said


Numbers = list[tuple[NDArray[np.float64], Any]]


def _apart(mine: Numbers, right: Numbers, tolerance: float) -> str:
    if len(mine) != len(right) or not right:
        return f"{len(mine)} arrays, expected {len(right)}"
    for place, ((found, _), (exact, scale)) in enumerate(zip(mine, right, strict=True), 1):
        if found.shape != exact.shape:
            return f"array {place} has shape {found.shape}, expected {exact.shape}"
        error = np.abs(found - exact)
        wrong = np.flatnonzero(~(error <= tolerance * scale))
        if wrong.size:
            return (
                f"{wrong.size:,} of {exact.size:,} numbers of array {place} of {len(right)}"
                f" from index {wrong[0]:,} on, by up to {np.max(error):.1e} of {np.max(scale):.1e}"
            )
    return ""


def _numbers(xp: ModuleType, result: Any) -> Iterator[tuple[NDArray[np.float64], Any]]:
    """Every array of a result in float64, numbers as arrays, with the scale of its errors."""
    if isinstance(result, _Factors):
        left, right = (to_host(factor, xp) for factor in result)
        product = left @ right
        yield product, _biggest(product)
    elif isinstance(result, _Products):
        found = np.asarray(result, dtype=np.float64)
        first, second = math.sqrt(abs(found[0])), math.sqrt(abs(found[1]))
        yield found, np.asarray([first * first, second * second, first * second])
    elif isinstance(result, _Gram):
        lengths = np.sqrt(np.abs(np.diagonal(result.products)))
        yield result.products, np.outer(lengths, lengths)
    elif isinstance(result, EncodedBuckets):
        for bucket in REFERENCE.decode(result, xp):
            yield from _numbers(xp, bucket)
    elif isinstance(result, Mapping):
        yield from _numbers(xp, [float(result[key]) for key in sorted(result)])
    elif isinstance(result, tuple | list):
        for part in result:
            yield from _numbers(xp, part)
    elif isinstance(result, float | int):
        yield np.asarray([result], dtype=np.float64), abs(result)
    elif result is not None:
        found = to_host(result, xp)
        yield found, _biggest(found)


def _biggest(array: NDArray[np.float64]) -> float:
    return float(np.max(np.abs(array))) if array.size else 0.0


T = TypeVar("T")


def _lazily(make: Callable[[], T]) -> Callable[[], T]:
    """A function that makes its value once, when it is first asked for."""
    return functools.cache(make)


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
