"""Reads networks from files: this project's own, and those of NiNo's MLP variant."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from hybridcore_nowcast.errors import CheckpointError
from hybridcore_nowcast.network import FORMAT, Network, NowcastNetwork
from hybridcore_nowcast.wnn_plus import WnnPlus

__all__ = ["load_network"]

Arrays = dict[str, NDArray[Any]]

_FIX = "name a .safetensors or .pt file of a nowcast network or of NiNo's MLP variant"


def load_network(checkpoint: str = "") -> Network:
    """A network from a file; nothing in the file is executed.

    Args:
        checkpoint: Path of a ``.safetensors`` file, or of a ``.pt`` or ``.pth`` file, which needs PyTorch and
            is read with ``weights_only=True``. Empty for the network of this distribution.

    Raises:
        CheckpointError: The file is missing, unreadable, or holds something else.

    Example:
        >>> load_network().snapshots
        5
    """
    if not checkpoint:
        with as_file(files("hybridcore_nowcast") / "weights" / "nowcast.safetensors") as shipped:
            return _network(*_safetensors(shipped), str(shipped))
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(
            "a network's checkpoint does not exist",
            where="predictor.nowcast.checkpoint",
            got=checkpoint,
            expected="a file",
            fix=_FIX,
        )
    if path.suffix == ".safetensors":
        return _network(*_safetensors(path), checkpoint)
    if path.suffix in {".pt", ".pth"}:
        return _network(*_torch(path), checkpoint)
    raise CheckpointError(
        "a network's checkpoint has an unknown form",
        where=checkpoint,
        got=path.suffix or "no suffix",
        expected=".safetensors, .pt or .pth",
        fix=_FIX,
    )


def _network(arrays: Arrays, about: dict[str, Any], where: str) -> Network:
    try:
        with np.errstate(all="ignore"):
            return _built(arrays, about, where)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged file may lead to
        raise CheckpointError(
            f"a network's checkpoint is damaged: {type(error).__name__}: {error}", where=where, fix=_FIX
        ) from error


def _built(arrays: Arrays, about: dict[str, Any], where: str) -> Network:
    if about.get("format") == FORMAT:
        try:
            furthest = float(about["furthest"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                "a nowcast checkpoint does not say how far it looks ahead",
                where=where,
                got=about,
                expected="a number under the metadata key 'furthest'",
                fix="write it with training/train.py",
            ) from error
        return NowcastNetwork(arrays, furthest)
    if any(name.startswith("edge_") for name in arrays):
        return WnnPlus(arrays, about, where)
    raise CheckpointError(
        "a checkpoint holds no network that nowcast knows",
        where=where,
        got=", ".join(sorted(arrays)[:6]) or "no arrays",
        expected=f"metadata format {FORMAT!r}, or arrays named edge_proj.* and edge_mlp.*",
        fix=_FIX,
    )


def _safetensors(path: Path) -> tuple[Arrays, dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            about: dict[str, Any] = dict(file.metadata() or {})
        if "model_args" in about:
            about["model_args"] = json.loads(about["model_args"])
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"a network's checkpoint cannot be read: {error}",
            where=str(path),
            expected="a safetensors file of float16, float32 or float64 arrays",
            fix="write or copy it again",
        ) from error
    return arrays, about


def _torch(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and ``model_args`` of a file by `torch.save`: a state dict, or one beside ``"model_args"``."""
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            "a .pt checkpoint needs PyTorch",
            where=str(path),
            expected="PyTorch, or a .safetensors file",
            fix="pip install torch, or convert the file's state dict with safetensors.torch.save_file",
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content)
        arrays = {name: value.to(torch.float32).numpy() for name, value in state.items()}
        about = {"model_args": dict(content.get("model_args", {}))} if state is not content else {}
    except Exception as error:  # torch.load raises whatever its unpickler meets
        raise CheckpointError(
            f"a network's checkpoint cannot be read as plain weights: {type(error).__name__}: {error}",
            where=str(path),
            expected="a state dict of tensors, alone or under 'state_dict' beside 'model_args'",
            fix="keep only these two keys, or convert the state dict with safetensors.torch.save_file",
        ) from error
    return arrays, about
