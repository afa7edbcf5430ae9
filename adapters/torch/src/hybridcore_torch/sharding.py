"""Parameters of which each process holds a shard: their local tensors, and back (F71)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from hybridcore.errors import ModelError

__all__ = ["is_sharded", "local", "local_all", "local_tree", "require_plain_shards", "reshard", "shard_like"]


def is_sharded(tensor: Any) -> bool:
    """Whether it is a `torch.distributed.tensor.DTensor`; asked without importing the module."""
    return hasattr(tensor, "_local_tensor") and hasattr(tensor, "placements")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What of a tensor lies on this process; the tensor itself where nothing is sharded."""
    found: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return found


def local_all(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """`local` of each."""
    return [local(t) for t in tensors]


def local_tree(value: Any) -> Any:
    """Nested dicts, lists and tuples with the local part in each tensor's place."""
    if isinstance(value, torch.Tensor):
        return local(value)
    if isinstance(value, dict):
        return {key: local_tree(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(local_tree(item) for item in value)
    return value


def shard_like(part: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """A local part as a tensor sharded like `param`, where it is one of its parts; else as it is.

    Args:
        part: For example one of Adam's moments on this process.
        param: The parameter it belongs to.
    """
    if not is_sharded(param) or part.shape != local(param).shape or part.ndim != param.ndim:
        return part
    from torch.distributed.tensor import DTensor

    of: Any = param
    whole: torch.Tensor = DTensor.from_local(
        part, of.device_mesh, of.placements, run_check=False, shape=param.shape, stride=param.stride()
    )
    return whole


def require_plain_shards(named: Iterable[tuple[str, torch.Tensor]], world_size: int) -> int:
    """Number of ranks that hold the same shard, the same for all parameters.

    Args:
        named: Names and parameters.
        world_size: Number of ranks.

    Raises:
        ModelError: Some parameters are sharded and others are not, or a parameter is a sum of parts.
    """
    copies: dict[int, str] = {}
    for name, param in named:
        shards = 1
        if is_sharded(param):
            of: Any = param
            for size, placement in zip(of.device_mesh.shape, of.placements, strict=True):
                if placement.is_partial():
                    raise ModelError(
                        "a parameter is a sum of parts on several processes",
                        where=name,
                        got=str(of.placements),
                        expected="Shard or Replicate placements",
                        fix="shard the model with `fully_shard`",
                    )
                shards *= int(size) if placement.is_shard() else 1
        copies.setdefault(world_size // shards, name)
    if len(copies) != 1:
        raise ModelError(
            "some parameters are sharded over more processes than others",
            where=", ".join(copies.values()),
            got=f"{sorted(copies)} copies of a parameter",
            expected="the same number for all",
            fix="call `fully_shard` on the whole model too, and freeze what it must not shard",
        )
    return next(iter(copies))


def reshard(model: nn.Module) -> None:
    """Free the whole parameters that a forward pass has left in FSDP2 modules.

    After a forward pass without a backward pass, the root module keeps its gathered parameters for the
    next one, which would not see changes of the shards.
    """
    for module in model.modules():
        free = getattr(module, "reshard", None)
        if free is not None and hasattr(module, "unshard"):
            free()
