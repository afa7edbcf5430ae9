"""The optimizer's state in host memory while nobody needs it (F63)."""

from __future__ import annotations

import torch

from hybridcore_torch.sharding import local
from hybridcore_torch.tensors import tensor_nbytes, tree_tensors

__all__ = ["OptimizerOffload", "host_copy"]


def host_copy(tensor: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """Copy in host memory: pinned and asynchronous from an accelerator, in its stream's order.

    Args:
        tensor: What to copy.
        into: Earlier copy of a tensor like it, to be used again.
    """
    if into is None:
        into = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return into.copy_(tensor.detach(), non_blocking=tensor.is_cuda)


class OptimizerOffload:
    """Moves the tensors of an optimizer's state out of the device and back, each time the same ones.

    The tensors stay the objects that they are; only the memory behind them goes, so that whoever holds one
    still holds it afterwards. What the optimizer keeps in host memory anyway stays where it is. The host
    copies are kept for the next time, since pinned memory is slow to get.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._away: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        self._spare: dict[torch.Size, list[torch.Tensor]] = {}
        optimizer.register_step_pre_hook(lambda *_: self.back())
        optimizer.register_state_dict_pre_hook(lambda *_: self.back())

    @property
    def away(self) -> bool:
        """Whether the state is in host memory now."""
        return bool(self._away)

    @property
    def nbytes(self) -> int:
        """Bytes that have left the device."""
        return tensor_nbytes(tensor for tensor, _, _ in self._away)

    @torch.no_grad()
    def go(self) -> None:
        """Copy every state tensor to the host and free its memory on the device.

        A tensor that is a view into memory shared with others stays, and so do those of an optimizer whose
        step is captured in a CUDA graph, which knows them by address.
        """
        if self._away:
            return
        groups = self._optimizer.param_groups
        if any(g.get("capturable") for g in groups):
            return
        for param, state in self._optimizer.state.items():
            for tensor in map(local, tree_tensors(state)):
                whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
                if tensor is param or tensor.device != local(param).device or not whole or not tensor.numel():
                    continue
                kept = self._spare.get(tensor.shape)
                copy = host_copy(tensor, kept.pop() if kept and kept[-1].dtype is tensor.dtype else None)
                self._away.append((tensor, copy, tensor.untyped_storage().nbytes()))
        if any(tensor.is_cuda for tensor, _, _ in self._away):
            torch.cuda.synchronize()  # memory may go only once its copy is whole
        for tensor, _, _ in self._away:
            tensor.untyped_storage().resize_(0)

    @torch.no_grad()
    def back(self) -> None:
        """Fill the tensors with what they held; does nothing where they hold it already."""
        if not self._away:
            return
        away, self._away = self._away, []
        for tensor, copy, size in away:
            tensor.untyped_storage().resize_(size)
            tensor.copy_(copy, non_blocking=tensor.is_cuda)
            self._spare.setdefault(tensor.shape, []).append(copy)
