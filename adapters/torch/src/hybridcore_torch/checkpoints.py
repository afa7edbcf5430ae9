"""Snapshots as NumPy arrays and plain data, and weights for the users of PyTorch (F53)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from hybridcore.errors import SnapshotError
from hybridcore.layout import ParamLayout
from hybridcore.protocols import ArrayRef
from hybridcore_torch.snapshot import TorchSnapshot

__all__ = ["export", "put_together", "take_apart"]

_PARTS = ("params", "state", "groups", "buffers", "scheduler", "scaler", "rng", "pending")
_SIZES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
_PLAIN = {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool}


def take_apart(snapshot: TorchSnapshot) -> tuple[dict[str, NDArray[Any]], Any]:
    """Arrays by number, and the snapshot's structure with `ArrayRef` in their places.

    Tensors of dtypes that NumPy does not have, such as bfloat16, become integers of the same bits.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for device in set(snapshot.homes.values()):
        torch.cuda.synchronize(device)  # copies into pinned memory may still be under way
    data = {name: _out(getattr(snapshot, name), arrays, snapshot.homes) for name in _PARTS}
    return arrays, data


def _out(value: Any, arrays: dict[str, NDArray[Any]], homes: Mapping[int, torch.device]) -> Any:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        if tensor.dtype not in _PLAIN:
            tensor = tensor.view(_SIZES[tensor.element_size()])
        key = str(len(arrays))
        arrays[key] = tensor.numpy()
        return ArrayRef(key, str(value.dtype).removeprefix("torch."), str(homes.get(id(value), value.device)))
    if type(value) is dict:
        return {key: _out(item, arrays, homes) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_out(item, arrays, homes) for item in value)
    return value


def put_together(arrays: Mapping[str, NDArray[Any]], data: Any, layout: ParamLayout) -> TorchSnapshot:
    """The snapshot that `take_apart` took apart.

    Raises:
        SnapshotError: A part is missing, or a dtype or a device does not exist here.
    """
    try:
        parts = {name: _back(data[name], arrays) for name in _PARTS}
        return TorchSnapshot(layout=layout, **parts)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        raise SnapshotError(
            f"a snapshot cannot be put together: {error}",
            where="snapshot_from_state",
            got=type(error).__name__,
            expected="what snapshot_state gave, on the same devices",
        ) from error


def _back(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if isinstance(value, ArrayRef):
        # Names are looked up in lists: asked for another attribute or device, PyTorch imports what has it.
        dtype, device = _DTYPES[f"torch.{value.dtype}"], torch.device(value.device)
        if device.type not in _DEVICES:
            raise ValueError(f"{value.device} is no device of a model")
        tensor = torch.from_numpy(np.array(arrays[value.key]))
        return (tensor if tensor.dtype is dtype else tensor.view(dtype)).to(device)
    if isinstance(value, dict) and type(value) is dict:
        return {key: _back(item, arrays) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_back(item, arrays) for item in value)
    return value


def export(model: nn.Module, path: str) -> None:
    """Write ``model.state_dict()`` with tensors that share no memory, as safetensors demands."""
    tensors = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, path)
