"""A kernel set that takes each operation from where it was found best, and falls back when one fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.errors import HybridCoreError
from hybridcore.kernels.reference import REFERENCE
from hybridcore.layout import Array, Buckets
from hybridcore.protocols import API_VERSION, EncodedBuckets, Ensemble, KernelSet, Runs

__all__ = ["OPERATIONS", "ChosenKernels", "KernelChoice"]

OPERATIONS = (
    "products",
    "distance",
    "gram",
    "combine",
    "window_mean",
    "displace",
    "run_norms",
    "encode",
    "decode",
    "compress",
    "rollout",
)
"""Names of the operations of `hybridcore.protocols.KernelSet`."""

T = TypeVar("T")

logger = logging.getLogger("hybridcore")


@attrs.frozen
class KernelChoice:
    """Who does one operation, and why.

    Attributes:
        operation: One of `OPERATIONS`.
        name: Registry name of the kernel set chosen.
        reason: One line.
        seconds: Seconds of that kernel set's operation in the trial; NaN where nothing was timed.
        reference_seconds: The same of the reference.
    """

    operation: str
    name: str
    reason: str
    seconds: float = float("nan")
    reference_seconds: float = float("nan")


class ChosenKernels:
    """Kernel set of one run.

    An operation that raises anything but a `HybridCoreError` (a toolkit that is missing, memory that ran
    out) is repeated by the reference, which from then on does all of them; one warning says so. Nothing is
    lost, since no operation writes to its arguments.

    Args:
        table: Kernel set per operation; the reference does those that are missing.
        choices: Why.

    Attributes:
        choices: Why, one entry per operation that was looked at.
        failure: What made it fall back, or None.

    Example:
        >>> ChosenKernels({}).summary()
        {'name': 'reference', 'operations': {}, 'failure': None}
    """

    name: ClassVar[str] = "chosen"
    api_version: ClassVar[int] = API_VERSION

    def __init__(self, table: Mapping[str, KernelSet], choices: Sequence[KernelChoice] = ()) -> None:
        self._table = {name: table.get(name, REFERENCE) for name in OPERATIONS}
        self.choices = tuple(choices)
        self.failure: str | None = None

    def supports(self, xp: ModuleType, device: str, dtype: str) -> bool:
        """What the sets of all operations support."""
        return all(kernels.supports(xp, device, dtype) for kernels in self._table.values())

    def used(self, operation: str) -> str:
        """Registry name of the kernel set that does an operation now."""
        return self._table[operation].name

    def summary(self) -> dict[str, Any]:
        """What was chosen and why, as plain data for the run's records."""
        names = dict.fromkeys(kernels.name for kernels in self._table.values())
        return {
            "name": "+".join(n for n in names if n != REFERENCE.name) or REFERENCE.name,
            "operations": {c.operation: f"{c.name}: {c.reason}" for c in self.choices},
            "failure": self.failure,
        }

    def _do(self, operation: str, call: Callable[[KernelSet], T]) -> T:
        kernels = self._table[operation]
        if kernels is REFERENCE:
            return call(REFERENCE)
        try:
            return call(kernels)
        except HybridCoreError:
            raise
        except Exception as error:
            self.failure = f"{kernels.name} failed in {operation}: {type(error).__name__}: {error}"
            self._table = dict.fromkeys(OPERATIONS, REFERENCE)
            logger.warning(
                "kernel set %r failed in %s (%s: %s); the Array API reference takes over, nothing is lost",
                kernels.name,
                operation,
                type(error).__name__,
                error,
            )
        return call(REFERENCE)

    def products(self, a: Buckets, b: Buckets, xp: ModuleType) -> tuple[float, float, float]:
        """``|a|^2``, ``|b|^2`` and ``a . b``."""
        return self._do("products", lambda k: k.products(a, b, xp))

    def distance(self, a: Buckets, b: Buckets, xp: ModuleType) -> float:
        """``|a - b|``."""
        return self._do("distance", lambda k: k.distance(a, b, xp))

    def gram(self, vectors: Sequence[Buckets], xp: ModuleType) -> NDArray[np.float64]:
        """Inner products of all pairs, shape (k, k)."""
        return self._do("gram", lambda k: k.gram(vectors, xp))

    def combine(self, vectors: Sequence[Buckets], weights: Sequence[float], xp: ModuleType) -> Buckets:
        """Sum of ``weights[i] * vectors[i]``, new buckets."""
        return self._do("combine", lambda k: k.combine(vectors, weights, xp))

    def window_mean(
        self, total: Buckets, count: int, previous: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, Buckets | None]:
        """Mean of a window and its displacement from the one before."""
        return self._do("window_mean", lambda k: k.window_mean(total, count, previous, xp))

    def displace(
        self, newer: Buckets, older: Buckets, last: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, tuple[float, float, float] | None]:
        """A displacement and its inner products with the one before."""
        return self._do("displace", lambda k: k.displace(newer, older, last, xp))

    def run_norms(self, sets: Sequence[Buckets], runs: Runs, xp: ModuleType) -> list[list[float]]:
        """Euclidean norm of each run, a list for each set of buckets."""
        return self._do("run_norms", lambda k: k.run_norms(sets, runs, xp))

    def encode(self, buckets: Buckets, dtype: str, seed: int, xp: ModuleType) -> EncodedBuckets:
        """Buckets in fewer bytes."""
        return self._do("encode", lambda k: k.encode(buckets, dtype, seed, xp))

    def decode(self, encoded: EncodedBuckets, xp: ModuleType) -> Buckets:
        """Float32 buckets again."""
        return self._do("decode", lambda k: k.decode(encoded, xp))

    def compress(
        self, matrix: Array, rank: int, test: Array, iterations: int, xp: ModuleType
    ) -> tuple[Array, Array]:
        """Low-rank factors of a matrix."""
        return self._do("compress", lambda k: k.compress(matrix, rank, test, iterations, xp))

    def rollout(
        self,
        models: Ensemble,
        features: NDArray[Any],
        actions: NDArray[Any],
        ahead: NDArray[Any],
        noise: NDArray[Any],
        xp: ModuleType,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Paths of an ensemble of recurrent models."""
        return self._do("rollout", lambda k: k.rollout(models, features, actions, ahead, noise, xp))
