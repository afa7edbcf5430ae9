"""What a framework's adapter must offer, and what it may offer besides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Buckets, ParamGroup, ParamLayout
from hybridcore.protocols.steps import StepResult

__all__ = [
    "Adapter",
    "ArrayRef",
    "CheckpointAdapter",
    "ClippingAdapter",
    "HostCopy",
    "HostMemoryAdapter",
    "MemoryAdapter",
    "PeakMemoryAdapter",
    "RankedAdapter",
    "RateAdapter",
    "ResidualAdapter",
    "Snapshot",
]


Snapshot = Any
"""An adapter's own immutable copy of parameters, optimizer state, buffers, scaler, scheduler and RNG."""


@runtime_checkable
class Adapter(Protocol):
    """Bridge to one framework's model and optimizer. `AdapterContract` tests every sentence here.

    Attributes:
        name: Registry name, for example ``"torch"``.
        api_version: `API_VERSION` it was written for.
        xp: Array API namespace of the buckets it hands out.
        device: Name of the device the buckets lie on.
        capabilities: Names of what it can do beyond the minimum, for example ``"closure"``.
        layout: How the trainable parameters lie in buckets. Frozen parameters are absent; tied weights
            appear once.
    """

    name: str
    api_version: int
    xp: ModuleType
    device: str
    capabilities: frozenset[str]
    layout: ParamLayout

    def read_params(self, out: Buckets | None = None) -> Buckets:
        """Copy of the weights as buckets of `ParamLayout.bucket_dtype`, never a view of the model.

        Args:
            out: Buckets that may be reused for the result; use the return value all the same.
        """
        ...

    def add_params(self, into: Buckets, weight: float = 1.0, decay: float = 1.0) -> Buckets:
        """``decay * into + weight * params`` in one pass; `into` may be reused, use the return value."""
        ...

    def write_params(self, buckets: Buckets) -> None:
        """Set the weights to `buckets`, cast to the model's dtypes; nothing else changes."""
        ...

    def apply_delta(
        self, deltas: Buckets, scale: float = 1.0, groups: Mapping[ParamGroup, float] | None = None
    ) -> None:
        """Add ``scale * groups[g] * delta`` to every parameter of group g (missing groups count 1.0).

        Keeps the optimizer, graphs and wrappers valid and builds no autograd graph (F60).

        Raises:
            DeltaError: Buckets do not fit the layout; the weights are unchanged (F22).
        """
        ...

    def weights(self, buckets: Buckets) -> AbstractContextManager[None]:
        """Context in which the model has these weights; on exit the former ones are back bit for bit."""
        ...

    def train_step(self, batch: Any) -> StepResult:
        """One forward, backward and optimizer update by the framework itself.

        A non-finite loss or gradient changes nothing and gives ``skipped=True`` (F41).

        Raises:
            BatchError: The batch has a form the model cannot take.
        """
        ...

    def probe_loss(self, batch: Any) -> NDArray[np.float64]:
        """Per-example losses, shape (n,), forward only, in evaluation mode.

        Builds no graph and leaves parameters, buffers, RNG and training mode untouched.
        """
        ...

    def refresh_statistics(self, batches: Iterable[Any]) -> None:
        """Re-estimate normalisation statistics by forwards over `batches`; nothing else changes (F86)."""
        ...

    def snapshot(self) -> Snapshot:
        """Copy of everything a step can change: parameters, optimizer, buffers, scaler, scheduler, RNG."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Put a snapshot back bit for bit; it stays valid for further restores.

        Raises:
            SnapshotError: It was taken from a model with another layout.
        """
        ...

    def snapshot_nbytes(self) -> int:
        """Bytes that one snapshot takes now beside the model: none where it leaves an accelerator."""
        ...

    def after_jump(self, deltas: Buckets) -> None:
        """Adjust the optimizer's own state after a predicted change (F59); by default state is kept."""
        ...

    @property
    def learning_rate(self) -> float:
        """Learning rate of the optimizer's first group, now."""
        ...

    @property
    def momentum_memory(self) -> float:
        """Steps the optimizer's first moment remembers, ``1 / (1 - beta1)``; 1.0 without momentum."""
        ...

    def moments(self) -> dict[str, float]:
        """Mean and standard deviation of the optimizer's moments: keys m_mean, m_std, v_mean, v_std (F9)."""
        ...

    def mean_scalar(self, value: float) -> float:
        """Mean of a scalar over all ranks, so that all decide alike; the value itself on one process."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has finished, so that clocks tell the truth."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Adapter-level state that snapshots do not hold (counters), as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...


@runtime_checkable
class ResidualAdapter(Protocol):
    """What an adapter with the capability ``"residuals"`` offers: losses that are squares of residuals."""

    def linearise_residuals(
        self, batch: Any, directions: Sequence[Buckets]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Residuals r (n,) whose squares are `Adapter.probe_loss`, and their derivatives (n, k).

        Forward-mode differentiation along k changes of the weights, in evaluation mode; nothing changes.
        """
        ...


@runtime_checkable
class MemoryAdapter(Protocol):
    """An adapter with the capability ``"memory"``: it knows its device's memory and can leave it."""

    def free_bytes(self) -> int | None:
        """Bytes that the allocator of the model's device could still give; None on the host."""
        ...

    def keep_snapshots(self, place: str) -> None:
        """Keep later snapshots on the ``"device"`` or in ``"host"`` memory; restored they are equal."""
        ...

    def offload_optimizer(self) -> None:
        """Move the optimizer's state into host memory until anything needs it, which brings it back (F63)."""
        ...


@runtime_checkable
class PeakMemoryAdapter(Protocol):
    """An adapter with the capability ``"peak-memory"``: its device's allocator counts what is in use."""

    def reset_peak(self) -> None:
        """Count the peak anew, from what is in use now."""
        ...

    def peak_bytes(self) -> int | None:
        """Most bytes in use at once since `reset_peak`, on the fullest device of the model; None on the host.

        It may be called in another thread, and more often than once: where the framework cannot count anew,
        the largest of what it finds at these calls will do.
        """
        ...


@runtime_checkable
class HostCopy(Protocol):
    """Copies of arrays that wait in host memory; never changed.

    Attributes:
        dtypes: Name of each array's dtype.
        homes: Name of each array's device, as the array itself tells it.
    """

    dtypes: tuple[str, ...]
    homes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that they take."""
        ...

    def back(self) -> Buckets:
        """Fresh arrays on the devices that they came from, bit for bit, ready for the work queued next.

        Where the device has queues, the transfer is queued, and the host does not wait for it.
        """
        ...

    def numpy(self) -> list[NDArray[Any]]:
        """Wait for the copies and give them as NumPy arrays, bfloat16 widened to float32; read only."""
        ...


@runtime_checkable
class HostMemoryAdapter(Protocol):
    """An adapter with the capability ``"host-memory"``: its arrays can wait in pinned host memory (F63).

    For other adapters the engine copies through NumPy, and waits for it.
    """

    def to_host(self, arrays: Buckets) -> HostCopy:
        """Begin to copy 1-D arrays of any dtype into host memory, beside the work that is queued next.

        The device's memory is free once the copy is done and the caller has let go of the arrays, which it
        must not write into any more.
        """
        ...


@runtime_checkable
class RateAdapter(Adapter, Protocol):
    """An adapter with the capability ``"learning-rate"``: the engine may change the learning rate (F40)."""

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the learning rate of every parameter group by `factor`, from the next step on.

        A schedule goes on from the scaled rate: all its later rates are `factor` times what they would have
        been. The change belongs to the state that `snapshot` copies and `restore` puts back.

        Args:
            factor: Above 0; ``scale_learning_rate(0.5)`` and then ``scale_learning_rate(2.0)`` changes
                nothing, bit for bit.
        """
        ...


@runtime_checkable
class ClippingAdapter(Adapter, Protocol):
    """An adapter with the capability ``"adaptive-clipping"`` (F69)."""

    def clip_adaptively(self, ratio: float | None) -> None:
        """Clip gradients unit by unit before each update of `train_step`, or no more where `ratio` is None.

        Adaptive gradient clipping (Brock et al. 2021, High-Performance Large-Scale Image Recognition
        Without Normalization, equation 3): the gradient of a unit, a row of a matrix or a whole vector, is
        shortened to ``ratio * max(norm of the unit's weights, 1e-3)`` where it is longer. The setting is
        none of the state that `snapshot` copies.
        """
        ...


@runtime_checkable
class RankedAdapter(Adapter, Protocol):
    """An adapter with the capability ``"ranks"``: several processes train one model (F71).

    What it hands out is agreed: `StepResult`, `Adapter.moments` and `Adapter.snapshot_nbytes` are the same
    on all ranks, and `Adapter.probe_loss` and `ResidualAdapter.linearise_residuals` give the rows of all
    ranks in rank order. Buckets hold what lies on this rank: the whole model, or its shard of it.

    Attributes:
        world_size: Number of ranks, 2 or more.
        copies: Ranks that hold the same weights: all of them where the model is replicated, 1 where each
            rank has a shard of its own.
    """

    world_size: int
    copies: int

    def gather_scalars(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Numbers of all ranks, shape (ranks, k), rows in rank order, bit for bit the same everywhere.

        Args:
            values: k numbers, as many on every rank.

        Raises:
            RankError: A process is gone or late.
        """
        ...

    def step_seconds(self, seconds: float) -> float:
        """Mean seconds of a real step over all ranks, after each real step.

        It may be that of the step before, so that it can travel with that step's own exchange.
        """
        ...


def _is_text(_: object, attribute: attrs.Attribute[str], value: object) -> None:
    if type(value) is not str:
        # Not the value itself: printing a tensor makes PyTorch import modules.
        raise TypeError(f"{attribute.name} is a {type(value).__name__}, and no text")


@attrs.frozen(slots=True)
class ArrayRef:
    """Place of an array in the plain data of a snapshot.

    Attributes:
        key: Its name among the arrays.
        dtype: The framework's own name of its dtype, where NumPy has no such dtype or none is enough.
        device: The framework's own name of its device.

    Raises:
        TypeError: One of them is no text.
    """

    key: str = attrs.field(validator=_is_text)
    dtype: str = attrs.field(default="", validator=_is_text)
    device: str = attrs.field(default="", validator=_is_text)


@runtime_checkable
class CheckpointAdapter(Adapter, Protocol):
    """An adapter with the capability ``"checkpoints"``: its snapshots can leave the process (F53)."""

    def snapshot_state(self, snapshot: Snapshot) -> tuple[Mapping[str, NDArray[Any]], Any]:
        """Take a snapshot apart.

        Returns:
            NumPy arrays by name, of a numeric or boolean dtype, bit for bit (other dtypes as the bits of a
            type of the same size); and plain data: numbers, text, None, `ArrayRef`, and lists, tuples and
            dictionaries of them.
        """
        ...

    def snapshot_from_state(self, arrays: Mapping[str, NDArray[Any]], data: Any) -> Snapshot:
        """The snapshot that `snapshot_state` took apart, also in another process.

        Raises:
            SnapshotError: It does not fit this model and optimizer.
        """
        ...

    def export_weights(self, path: str) -> None:
        """Write the weights of now as the framework's own users read them, into one safetensors file."""
        ...
