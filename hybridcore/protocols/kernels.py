"""The operations on buckets that a set of kernels must offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Array, Buckets, ParamGroup

__all__ = ["EncodedBuckets", "Ensemble", "KernelSet", "RolloutSizes", "Runs", "UsesKernels"]


Runs = Sequence[tuple[ParamGroup, int, slice]]
"""``(group, bucket, slice)`` of contiguous stretches of one group, as `ParamLayout.group_slices` gives."""


@attrs.frozen
class EncodedBuckets:
    """Buckets in fewer bytes (F65).

    Attributes:
        dtype: ``"bfloat16"`` or ``"int8"``.
        codes: One 1-D array per bucket: bfloat16 (uint16 bit patterns where the namespace has no bfloat16)
            or int8.
        scales: One 1-D float32 array per bucket, a scale for each block of 256 numbers; empty for bfloat16.
    """

    dtype: str
    codes: Buckets
    scales: Buckets = ()


@attrs.frozen(eq=False)
class Ensemble:
    """Recurrent state-space models of equal sizes, see `hybridcore.dynamics.state_space` (F70).

    Weights never change under one instance: a kernel set may keep a copy of them for as long as it lives.

    Attributes:
        weights: Layer to weights of shape (members, inputs, outputs), and biases (members, 1, outputs); names
            and order of the inputs are those of `hybridcore.dynamics.state_space.Sizes.shapes`.
        classes: Classes of each categorical variable.
    """

    weights: Mapping[str, Array]
    classes: int


@attrs.frozen(kw_only=True)
class RolloutSizes:
    """What a roll-out is tried at; by default the sizes of the dynamics model `rssm` as it comes.

    Attributes:
        features: Features that a model observes.
        actions: Length of an action vector.
        deterministic: Width of the GRU's state.
        stochastic: Categorical variables.
        classes: Classes of each.
        hidden: Width of the layers between.
        members: Models in the ensemble.
        samples: Paths per model and start.
        context: Ticks with features before the branch point.
        horizon: Ticks without features after it.
    """

    features: int = 30
    actions: int = 8
    deterministic: int = 32
    stochastic: int = 4
    classes: int = 8
    hidden: int = 32
    members: int = 3
    samples: int = 8
    context: int = 4
    horizon: int = 16


@runtime_checkable
class UsesKernels(Protocol):
    """A component that asks a kernel set for roll-outs; the engine sets `kernels` when a run begins."""

    kernels: KernelSet

    def rollout_sizes(self, predictors: int) -> RolloutSizes:
        """Sizes of its usual roll-out in a run with so many predictors."""
        ...


@runtime_checkable
class KernelSet(Protocol):
    """Fused operations on buckets; `hybridcore.kernels.ReferenceKernels` says what each one must give.

    No operation writes to its arguments, so that one that fails can be repeated by the reference.
    Operations that give Python numbers or NumPy arrays wait for the device once; all others only queue work
    on the framework's current stream. Where they must not be trusted to be right or fast, the engine
    measures: see `hybridcore.kernels.choose`.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]

    def supports(self, xp: ModuleType, device: str, dtype: str) -> bool:
        """Whether arrays of this namespace, on this device and of this dtype, can be worked on here."""
        ...

    def products(self, a: Buckets, b: Buckets, xp: ModuleType) -> tuple[float, float, float]:
        """``|a|^2``, ``|b|^2`` and ``a . b``."""
        ...

    def distance(self, a: Buckets, b: Buckets, xp: ModuleType) -> float:
        """``|a - b|``."""
        ...

    def gram(self, vectors: Sequence[Buckets], xp: ModuleType) -> NDArray[np.float64]:
        """Inner products of all pairs, shape (k, k)."""
        ...

    def combine(self, vectors: Sequence[Buckets], weights: Sequence[float], xp: ModuleType) -> Buckets:
        """Sum of ``weights[i] * vectors[i]``, new buckets."""
        ...

    def window_mean(
        self, total: Buckets, count: int, previous: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, Buckets | None]:
        """Mean ``total / count`` of a window and its displacement from the `previous` window's mean."""
        ...

    def displace(
        self, newer: Buckets, older: Buckets, last: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, tuple[float, float, float] | None]:
        """``d = newer - older``, and with `last` also ``|d|^2``, ``|last|^2`` and ``d . last``."""
        ...

    def run_norms(self, sets: Sequence[Buckets], runs: Runs, xp: ModuleType) -> list[list[float]]:
        """Euclidean norm of each run, a list for each set of buckets."""
        ...

    def encode(self, buckets: Buckets, dtype: str, seed: int, xp: ModuleType) -> EncodedBuckets:
        """Buckets as ``"bfloat16"`` (nearest, ties to even) or ``"int8"`` (stochastic rounding by `seed`)."""
        ...

    def decode(self, encoded: EncodedBuckets, xp: ModuleType) -> Buckets:
        """Float32 buckets again."""
        ...

    def compress(
        self, matrix: Array, rank: int, test: Array, iterations: int, xp: ModuleType
    ) -> tuple[Array, Array]:
        """Factors (m, r) and (r, n) whose product is close to `matrix` (m, n).

        `test` is a Gaussian matrix (n, k) on the matrix' device, r = min(rank, k); the range is found from
        it after so many power iterations.
        """
        ...

    def rollout(
        self,
        models: Ensemble,
        features: NDArray[Any],
        actions: NDArray[Any],
        ahead: NDArray[Any],
        noise: NDArray[Any],
        xp: ModuleType,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Paths of every model of an ensemble from the same starts: read the context, then go on without it.

        The first draw is of z from the posterior of the first features. A tick with features takes two, of
        the prior, which the next one replaces, and of the posterior; a tick without them one of the prior.

        Args:
            models: E models whose weights are arrays of `xp`.
            features: Normalised features up to the branch point, shape (n, context + 1, features), on the
                host.
            actions: What was done after each of them, shape (n, context + 1, actions), on the host; the
                last is the action of the first tick without features.
            ahead: Action of all later ticks, shape (actions,), on the host.
            noise: Gumbel noise of all draws in their order, on the host, shape (1 + 2 context + horizon, E,
                n * samples, latent); the samples of one start lie side by side.
            xp: Array namespace of the weights.

        Returns:
            First and second output of the head at each tick without features (step of the loss, raw log
            variance), shape (E, n * samples, horizon), on the host.
        """
        ...
