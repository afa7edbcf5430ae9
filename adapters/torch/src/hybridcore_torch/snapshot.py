"""Copies of everything a training step can change, and their return bit for bit."""

from __future__ import annotations

import weakref
from typing import Any

import attrs
import torch

from hybridcore.errors import ModelError, SnapshotError
from hybridcore.layout import ParamLayout
from hybridcore_torch.modes import BufferGuard
from hybridcore_torch.offload import host_copy
from hybridcore_torch.sharding import is_sharded, local, local_all, local_tree, shard_like
from hybridcore_torch.tensors import (
    alike,
    clone_all,
    clone_tree,
    copy_all,
    rebuild,
    tensor_nbytes,
    tree_tensors,
)

__all__ = ["SnapshotKeeper", "TorchSnapshot"]


@attrs.frozen(slots=True, eq=False)
class TorchSnapshot:
    """One moment of a training run; never changed while somebody holds it.

    Attributes:
        layout: Layout of the model it belongs to.
        params: Copies of all parameters that the optimizer holds.
        state: The optimizer's state per parameter; None where it had none.
        groups: The optimizer's hyperparameters per parameter group.
        buffers: Copies of the buffers, by index.
        scheduler: State of the learning-rate scheduler.
        scaler: State of the gradient scaler.
        rng: Generator states, CPU first; empty where they were left out.
        pending: Whether the momentum rule was waiting for the next gradient.
        homes: Devices of those tensors that are kept in host memory but belong to another, by their id.
    """

    layout: ParamLayout
    params: list[torch.Tensor]
    state: list[dict[Any, Any] | None]
    groups: list[dict[str, Any]]
    buffers: dict[int, torch.Tensor]
    scheduler: dict[str, Any] | None
    scaler: dict[str, Any] | None
    rng: list[torch.Tensor]
    pending: bool
    homes: dict[int, torch.device] = attrs.field(factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in it."""
        parts = [self.params, self.state, self.groups, self.buffers, self.scheduler, self.rng]
        return tensor_nbytes(tree_tensors(parts))


class SnapshotKeeper:
    """Takes and restores snapshots of one model and optimizer.

    The memory of the last snapshot that nobody holds any more is used again for the next one: fresh
    memory costs several times the copy itself.

    Args:
        layout: The model's layout.
        guard: Knows the model's buffers.
        optimizer: The optimizer.
        scheduler: Learning-rate scheduler, or None.
        scaler: Gradient scaler, or None.
        cuda: CUDA devices whose generators belong to the state.

    Attributes:
        in_host_memory: Whether snapshots leave the device, for pinned host memory.
    """

    def __init__(
        self,
        layout: ParamLayout,
        guard: BufferGuard,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        scaler: Any,
        cuda: list[torch.device],
    ) -> None:
        self._layout, self._guard, self._optimizer = layout, guard, optimizer
        self._scheduler, self._scaler, self._cuda = scheduler, scaler, cuda
        self.in_host_memory = False
        self._spare: list[list[torch.Tensor]] = []
        self._params: list[torch.Tensor] = [p for g in optimizer.param_groups for p in g["params"]]
        self._sharded = any(map(is_sharded, self._params))

    def take(self, pending: bool, rng: bool = True) -> TorchSnapshot:
        """Copy everything.

        Args:
            pending: Flag to keep with it.
            rng: Include the generators.

        Raises:
            ModelError: The optimizer was given more parameters since the adapter was made.
        """
        optimizer = self._optimizer
        if sum(len(g["params"]) for g in optimizer.param_groups) != len(self._params):
            raise ModelError(
                "the optimizer was given other parameters after the adapter was made",
                where="optimizer.param_groups",
                expected=f"{len(self._params)} parameters",
                fix="make the adapter after `add_param_group`",
            )
        live = self._live()
        tensors = list(tree_tensors(live))
        copies = self._copies(tensors)
        params, state, groups, buffers, scheduler = rebuild(live, iter(copies))
        snapshot = TorchSnapshot(
            layout=self._layout,
            params=params,
            state=state,
            groups=groups,
            buffers=buffers,
            scheduler=scheduler,
            scaler=dict(self._scaler.state_dict()) if self._scaler is not None else None,
            rng=self._rng_states() if rng else [],
            pending=pending,
            homes={
                id(copy): tensor.device
                for copy, tensor in zip(copies, tensors, strict=True)
                if copy.device != tensor.device
            },
        )
        weakref.finalize(snapshot, _recycle, self._spare, copies).atexit = False
        return snapshot

    def nbytes(self) -> int:
        """Bytes that a snapshot would take now."""
        return tensor_nbytes(tree_tensors([self._live(), self._rng_states()]))

    def _live(self) -> tuple[Any, ...]:
        """Everything that changes, as one tree over the tensors in use."""
        optimizer = self._optimizer
        state: list[Any] = [optimizer.state.get(p) for p in self._params]
        if self._sharded:
            state = local_tree(state)
        return (
            local_all(self._params) if self._sharded else self._params,
            state,
            [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
            self._guard.buffers(),
            self._scheduler.state_dict() if self._scheduler is not None else None,
        )

    def _copies(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        spare = self._spare.pop() if self._spare else []
        if len(spare) == len(tensors) and all(map(alike, spare, tensors)):
            copy_all(spare, tensors)
            return spare
        if self.in_host_memory:
            return [host_copy(t) for t in tensors]
        return clone_all(tensors)

    def _rng_states(self) -> list[torch.Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda)]

    @torch.no_grad()
    def put_back(self, snapshot: Any) -> None:
        """Restore into the very tensors that the model and the optimizer hold.

        Raises:
            SnapshotError: It is no snapshot of a model of this layout; nothing was changed.
        """
        self._check(snapshot)
        live, saved, homes = local_all(self._params), list(snapshot.params), snapshot.homes
        for param, values in zip(self._params, snapshot.state, strict=True):
            if values is None:
                self._optimizer.state.pop(param, None)
            else:
                _restore_dict(self._optimizer.state[param], values, live, saved, homes, like=param)
        for group, values in zip(self._optimizer.param_groups, snapshot.groups, strict=True):
            _restore_dict(group, values, live, saved, homes, drop=False)
        buffers = self._guard.buffers()
        for index, kept in snapshot.buffers.items():
            if index in buffers and alike(buffers[index], kept):
                live.append(buffers[index])
                saved.append(kept)
            else:
                self._guard.replace(index, _brought_home(kept, homes))
        copy_all(live, saved)
        if self._scaler is not None and snapshot.scaler:
            self._scaler.load_state_dict(dict(snapshot.scaler))
        if self._scheduler is not None:
            self._scheduler.load_state_dict(_brought_home(snapshot.scheduler, homes))
        if snapshot.rng:
            torch.set_rng_state(snapshot.rng[0])
            for device, state in zip(self._cuda, snapshot.rng[1:], strict=True):
                torch.cuda.set_rng_state(state, device)

    def _check(self, snapshot: Any) -> None:
        if not isinstance(snapshot, TorchSnapshot):
            raise SnapshotError(
                "this is no snapshot of the PyTorch adapter",
                where="restore",
                got=type(snapshot).__name__,
                expected="what `snapshot()` returned",
            )
        if snapshot.layout != self._layout or len(snapshot.params) != len(self._params):
            raise SnapshotError(
                "a snapshot belongs to a model of another layout",
                where="restore",
                got=f"{len(snapshot.params)} parameters, {snapshot.layout.total} weights",
                expected=f"{len(self._params)} parameters, {self._layout.total} weights",
                fix="restore it into the model it was taken from",
            )


def _recycle(spare: list[list[torch.Tensor]], copies: list[torch.Tensor]) -> None:
    spare[:] = [copies]


def _restore_dict(
    live: dict[Any, Any],
    saved: dict[Any, Any],
    targets: list[torch.Tensor],
    sources: list[torch.Tensor],
    homes: dict[int, torch.device],
    drop: bool = True,
    like: torch.Tensor | None = None,
) -> None:
    """Make `live` equal `saved`, queueing in-place copies for tensors that fit."""
    if drop:
        for key in [k for k in live if k not in saved]:
            del live[key]
    for key, value in saved.items():
        current = live.get(key)
        current = local(current) if isinstance(current, torch.Tensor) else current
        if isinstance(value, torch.Tensor) and isinstance(current, torch.Tensor) and alike(current, value):
            targets.append(current)
            sources.append(value)
        else:
            copy = _brought_home(value, homes)
            whole = isinstance(copy, torch.Tensor) and like is not None and is_sharded(like)
            live[key] = shard_like(copy, like) if whole and like is not None else copy


def _brought_home(value: Any, homes: dict[int, torch.device]) -> Any:
    """Copy of a tree with every tensor on the device that it was taken from."""
    tensors = list(tree_tensors(value))
    if not any(id(t) in homes for t in tensors):
        return clone_tree(value)
    return rebuild(value, iter([t.detach().to(homes.get(id(t), t.device), copy=True) for t in tensors]))
