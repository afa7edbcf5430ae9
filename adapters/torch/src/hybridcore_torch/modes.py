"""Temporary evaluation mode, fixed random numbers and saved buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hybridcore_torch.tensors import clone_all, copy_all

__all__ = ["BufferGuard", "evaluation_mode", "fixed_randomness", "tracked_norms"]

BatchNorm = nn.modules.batchnorm._BatchNorm
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def tracked_norms(base: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """BatchNorm layers that are learning their running statistics now (training mode, not frozen)."""
    return [m for m in base.modules() if isinstance(m, BatchNorm) and m.training and m.track_running_stats]


@contextmanager
def evaluation_mode(base: nn.Module) -> Iterator[None]:
    """Evaluation mode for all modules but BatchNorm, which uses the batch's own statistics.

    Running statistics belong to the weights that produced them; right after a predicted change they are
    stale, and a loss measured with them would blame the change for it. With the batch's own statistics
    the loss depends on weights and batch alone, and no buffer is written. BatchNorm layers that the user
    has put into evaluation mode (frozen) go on using their running statistics. On exit every module's
    flags are exactly what they were.
    """
    active = [m for m in base.modules() if m.training]
    norms = [m for m in active if isinstance(m, BatchNorm) and m.track_running_stats]
    keep = {id(m) for m in norms}
    try:
        for module in active:
            module.training = id(module) in keep
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for module in active:
            module.training = True
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def fixed_randomness(seed_state: torch.Tensor | None, devices: list[torch.device]) -> Iterator[None]:
    """Leave PyTorch's generators as they were found.

    Args:
        seed_state: State that the CPU generator has inside, so that all probes share random numbers; CUDA
            generators are seeded alike. None keeps the current ones.
        devices: CUDA devices whose generators count.
    """
    cpu = torch.get_rng_state()
    cuda = [torch.cuda.get_rng_state(d) for d in devices]
    try:
        if seed_state is not None:
            torch.set_rng_state(seed_state)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(0)
        yield
    finally:
        torch.set_rng_state(cpu)
        for device, state in zip(devices, cuda, strict=True):
            torch.cuda.set_rng_state(state, device)


class BufferGuard:
    """Keeps a copy of the buffers that a forward in training mode changes (BatchNorm statistics).

    Which ones change is found by comparing all buffers around the first step, so that large constant
    buffers (masks, tables) are not copied at every step.

    Args:
        base: The model.
    """

    def __init__(self, base: nn.Module) -> None:
        self._owners = [(module, name) for module in base.modules() for name in module._buffers]
        self._copies: list[torch.Tensor] = []
        self._watched: list[tuple[nn.Module, str]] | None = None if self._owners else []

    def buffers(self) -> dict[int, torch.Tensor]:
        """All buffers that exist now, by their index among the model's buffers."""
        return {
            index: tensor
            for index, (module, name) in enumerate(self._owners)
            if (tensor := module._buffers.get(name)) is not None
        }

    def replace(self, index: int, tensor: torch.Tensor) -> None:
        """Put another tensor in the place of a buffer."""
        module, name = self._owners[index]
        module._buffers[name] = tensor

    def _current(self) -> list[torch.Tensor]:
        owners = self._owners if self._watched is None else self._watched
        return [t for module, name in owners if (t := module._buffers[name]) is not None]

    def save(self) -> None:
        """Remember the buffers before a step."""
        if self._watched == []:
            return
        current = self._current()
        if len(current) != len(self._copies):
            self._copies = clone_all(current)
        else:
            copy_all(self._copies, current)

    def learn(self) -> None:
        """After the first whole forward: watch only the buffers that it changed."""
        if self._watched is not None:
            return
        present = [(m, n, t) for m, n in self._owners if (t := m._buffers[n]) is not None]
        changed = [
            ((module, name), copy)
            for (module, name, tensor), copy in zip(present, self._copies, strict=True)
            if name in _RUNNING or not torch.equal(tensor, copy)
        ]
        self._watched = [owner for owner, _ in changed]
        self._copies = [copy for _, copy in changed]

    def undo(self) -> None:
        """Put the remembered values back."""
        if self._watched != []:
            copy_all(self._current(), self._copies)
