"""Where window means are kept: whole or in fewer bytes, on the device or in host memory (F63, F65)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, overload

import numpy as np

from hybridcore.kernels.encoding import encoded_bytes
from hybridcore.layout import Buckets, ParamLayout
from hybridcore.protocols import EncodedBuckets, HostCopy, KernelSet

__all__ = ["WindowMeans"]

ToHost = Callable[[Buckets], HostCopy]
Kept = Buckets | HostCopy | EncodedBuckets
"""One mean: as it is, in host memory, or encoded (its codes and scales may be host copies)."""


class WindowMeans:
    """The newest window means, oldest first.

    Args:
        layout: Layout of the buckets.
        xp: Their array namespace.
        dtype: ``"float32"`` keeps them as they are; ``"bfloat16"`` and ``"int8"`` encode them.
        kernels: Who encodes and decodes.
        to_host: Begins a copy into host memory; None keeps them on the device.

    Example:
        >>> import array_api_compat.numpy as xp
        >>> from hybridcore.kernels.reference import REFERENCE
        >>> layout = ParamLayout.plan([("w", (2,), "float32", "cpu", None)])
        >>> means = WindowMeans(layout, xp, "float32", REFERENCE)
        >>> means.append((xp.asarray([1.0, 2.0]),), 1)
        >>> [mean[0].tolist() for mean in means.seen()]
        [[1.0, 2.0]]
    """

    def __init__(
        self,
        layout: ParamLayout,
        xp: ModuleType,
        dtype: str,
        kernels: KernelSet,
        to_host: ToHost | None = None,
    ) -> None:
        self._layout, self._xp, self._dtype, self._kernels = layout, xp, dtype, kernels
        self._to_host = to_host
        self._kept: list[Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    def append(self, mean: Buckets, seed: int) -> None:
        """Keep a mean, which nobody may write into any more.

        Args:
            mean: The mean.
            seed: Of stochastic rounding.
        """
        if self._dtype != "float32":
            self._kept.append(self._placed(self._kernels.encode(mean, self._dtype, seed, self._xp)))
            return
        _protect(mean)
        self._kept.append(self._placed(mean))

    def _placed(self, kept: Buckets | EncodedBuckets) -> Kept:
        if self._to_host is None:
            return kept
        if not isinstance(kept, EncodedBuckets):
            return self._to_host(kept)
        codes: Any = self._to_host(kept.codes)
        scales: Any = self._to_host(kept.scales) if kept.scales else ()
        return EncodedBuckets(kept.dtype, codes, scales)

    def keep(self, count: int) -> None:
        """Let all go but the newest `count`."""
        del self._kept[: max(0, len(self._kept) - count)]

    def seen(self) -> Sequence[Buckets]:
        """The means of now; those that are encoded or in host memory are made one by one, when taken."""
        if self._dtype == "float32" and self._to_host is None:
            return tuple(mean for mean in self._kept if isinstance(mean, tuple))
        return _Lazy(tuple(self._kept), self._whole)

    def _whole(self, kept: Kept) -> Buckets:
        if not isinstance(kept, EncodedBuckets):
            if isinstance(kept, tuple):
                return kept
            mean = kept.back()
            _protect(mean)
            return mean
        if self._to_host is not None:
            kept = EncodedBuckets(kept.dtype, _arrays(kept.codes), _arrays(kept.scales))
        decoded = self._kernels.decode(kept, self._xp)
        if self._layout.bucket_dtype == "float32":
            return decoded
        return tuple(self._xp.astype(b, self._xp.float64) for b in decoded)

    def versions(self) -> tuple[int, ...]:
        """Counts of writes into the means, where their library counts them (PyTorch does).

        Where it does not, arrays cannot be written to (JAX, TensorFlow) or are handed out read-only (NumPy).
        What comes from host memory is a copy each time.
        """
        newest = self._kept[-1] if self._kept else ()
        if self._to_host is not None or (
            isinstance(newest, tuple) and (not newest or isinstance(newest[0], np.ndarray))
        ):
            return ()
        found = []
        for array in self._arrays_held():
            try:
                found.append(int(getattr(array, "_version", 0)))
            except RuntimeError:  # tensors of inference mode count nothing
                found.append(0)
        return tuple(found)

    def _arrays_held(self) -> Iterator[Any]:
        for mean in self._kept:
            yield from mean.codes if isinstance(mean, EncodedBuckets) else _arrays(mean)

    @property
    def device_bytes(self) -> int:
        """Bytes of the means that are beside the model."""
        if self._to_host is not None:
            return 0
        kept_as = self._layout.bucket_dtype if self._dtype == "float32" else self._dtype
        return sum(encoded_bytes(int(array.shape[0]), kept_as) for array in self._arrays_held())

    @property
    def host_bytes(self) -> int:
        """Bytes of the means that wait in host memory."""
        parts = [
            p for m in self._kept for p in ((m.codes, m.scales) if isinstance(m, EncodedBuckets) else (m,))
        ]
        return sum(part.nbytes for part in parts if isinstance(part, HostCopy))

    def state(self) -> list[Any]:
        """What is kept, for a checkpoint."""
        return list(self._kept)

    def load_state(self, kept: Iterable[Any]) -> None:
        """Put back what `state` gave and a checkpoint has brought to the device."""
        self._kept = [mean if _is_away(mean) else self._placed(mean) for mean in kept]


def _is_away(kept: Kept) -> bool:
    return isinstance(kept.codes if isinstance(kept, EncodedBuckets) else kept, HostCopy)


def _arrays(kept: Any) -> Buckets:
    """Arrays on the device."""
    arrays: Buckets = kept if isinstance(kept, tuple) else kept.back()
    return arrays


def _protect(buckets: Buckets) -> None:
    """Make NumPy arrays read-only: verdicts depend on window means, which predictors get to see."""
    for bucket in buckets:
        if isinstance(bucket, np.ndarray):
            # Not `flags.writeable = False`: NumPy makes a new string "setflags" for that each time, and the
            # interpreter's cache of methods, 4096 places, comes to hold them, 57 bytes each.
            bucket.setflags(write=False)


class _Lazy(Sequence[Buckets]):
    """Window means of one moment, each made when it is asked for."""

    def __init__(self, kept: tuple[Kept, ...], whole: Callable[[Any], Buckets]) -> None:
        self._kept, self._whole = kept, whole

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Buckets: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Buckets]: ...

    def __getitem__(self, index: int | slice) -> Buckets | Sequence[Buckets]:
        if isinstance(index, slice):
            return _Lazy(self._kept[index], self._whole)
        return self._whole(self._kept[index])
