"""Tensors that wait in pinned host memory, copied beside the training (F63)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

__all__ = ["HostCopier", "TorchHostCopy"]


class TorchHostCopy:
    """Copies of tensors in host memory, pinned where they come from a CUDA device.

    Args:
        tensors: What is copied.
        streams: The stream that copies from each CUDA device.

    Attributes:
        dtypes: Name of each tensor's dtype.
        homes: Name of each tensor's device.
    """

    def __init__(
        self, tensors: Sequence[torch.Tensor], streams: dict[torch.device, torch.cuda.Stream]
    ) -> None:
        self._devices = [t.device for t in tensors]
        self.dtypes = tuple(str(t.dtype).rpartition(".")[2] for t in tensors)
        self.homes = tuple(str(d) for d in self._devices)
        self._kept = [torch.empty_like(t, device="cpu", pin_memory=t.is_cuda) for t in tensors]
        self._done: dict[torch.device, torch.cuda.Event] = {}
        for stream in streams.values():
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        for kept, tensor in zip(self._kept, tensors, strict=True):
            if not tensor.is_cuda:
                kept.copy_(tensor.detach())
                continue
            stream = streams[tensor.device]
            with torch.cuda.stream(stream):
                kept.copy_(tensor.detach(), non_blocking=True)
            tensor.record_stream(stream)  # its memory is used again only after the copy
        for device, stream in streams.items():
            self._done[device] = stream.record_event()

    @property
    def nbytes(self) -> int:
        """Bytes of host memory."""
        return sum(t.numel() * t.element_size() for t in self._kept)

    @torch.no_grad()
    def back(self) -> tuple[torch.Tensor, ...]:
        """Fresh tensors on the devices they came from, filled in the order of their current streams."""
        # In the current stream, not beside it: what a reader lets go serves the next mean at once.
        for device, event in self._done.items():
            torch.cuda.current_stream(device).wait_event(event)
        pairs = zip(self._kept, self._devices, strict=True)
        return tuple(torch.empty_like(t, device=d).copy_(t, non_blocking=True) for t, d in pairs)

    def numpy(self) -> list[NDArray[Any]]:
        """Wait for the copies and give them, bfloat16 as float32."""
        for event in self._done.values():
            event.synchronize()
        return [(t.float() if t.dtype is torch.bfloat16 else t).numpy() for t in self._kept]


class HostCopier:
    """Makes host copies, with one stream of its own per CUDA device.

    PyTorch keeps pinned memory that was let go for the next copy, and does not hand it out before transfers
    from and to it are over.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __call__(self, tensors: Sequence[torch.Tensor]) -> TorchHostCopy:
        """Begin to copy; the work queued before on the tensors' devices comes first."""
        used = {}
        for device in {t.device for t in tensors if t.is_cuda}:
            if device not in self._streams:
                make: Any = torch.cuda.Stream
                self._streams[device] = make(device)
            used[device] = self._streams[device]
        return TorchHostCopy(tensors, used)
