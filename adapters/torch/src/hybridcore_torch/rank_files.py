"""Reading the files of checkpoints from many processes: JSON and safetensors, never pickle (F53, F54)."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from hybridcore.checkpoint.files import SHARDS, verify
from hybridcore.checkpoint.manifest import Manifest, parse_json
from hybridcore.errors import CheckpointError

__all__ = ["FAILED", "library", "load_into", "read_state", "verified"]


def library() -> Any:
    """The module `torch.distributed.checkpoint`, whose storage in safetensors reads no pickle.

    Its usual storage, `FileSystemReader`, unpickles a file ``.metadata``; that of Hugging Face takes names,
    shapes and places from the headers of the safetensors files.

    Raises:
        CheckpointError: It has no such storage.
    """
    dcp: Any = importlib.import_module("torch.distributed.checkpoint")
    if not hasattr(dcp, "HuggingFaceStorageWriter"):
        raise CheckpointError(
            "this PyTorch cannot write distributed checkpoints as safetensors",
            where="torch.distributed.checkpoint",
            got=f"torch {torch.__version__}",
            expected="HuggingFaceStorageWriter",
            fix="pip install --upgrade torch",
        )
    return dcp


def _failure() -> type[BaseException]:
    """What `torch.distributed.checkpoint` raises when a process failed; no `Exception` of Python's."""
    try:
        from torch.distributed.checkpoint.api import CheckpointException
    except ImportError:
        return OSError
    return CheckpointException


FAILED = _failure()


def verified(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files are sound, and all that a reader would find.

    Raises:
        CheckpointError: A file is damaged, missing, or unknown to the manifest.
    """
    manifest = verify(path, SHARDS)
    strange = sorted(p.name for p in path.glob("*.safetensors") if p.name not in manifest.files)
    if strange:
        raise CheckpointError(
            "a checkpoint holds files that its manifest does not know",
            where=str(path),
            got=strange[:5],
            expected=f"{len(manifest.files)} files of safetensors",
            fix="remove them, or use an older checkpoint",
        )
    return manifest


def read_state(path: Path, rank: int) -> tuple[Any, dict[str, NDArray[Any]]]:
    """The engine's state as one process has written it.

    Args:
        path: A checkpoint, verified.
        rank: The process.

    Returns:
        The tree and its arrays, for `hybridcore.checkpoint.codec.Decoder`.

    Raises:
        CheckpointError: The files do not hold it.
    """
    mine = f"rank{rank}."
    state: dict[str, torch.Tensor] = {
        key: torch.zeros(tuple(entry.size), dtype=entry.properties.dtype)
        for key, entry in _known(path).items()
        if key.startswith(("all.", mine))
    }
    load_into(state, path)
    # What this process has of its own counts before what the first one wrote for all.
    plain = {key[4:]: tensor for key, tensor in state.items() if key.startswith("all.")}
    plain |= {key[len(mine) :]: tensor for key, tensor in state.items() if key.startswith(mine)}
    try:
        tree = parse_json(plain.pop("tree").numpy().tobytes(), str(path))
        return tree, {key.removeprefix("array."): tensor.numpy() for key, tensor in plain.items()}
    except (KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def load_into(state: dict[str, torch.Tensor], path: Path) -> None:
    """Fill tensors by their names; each process reads for itself, so that none waits for one that failed.

    Raises:
        CheckpointError: One is missing, or of another shape.
    """
    dcp = library()
    try:
        with warnings.catch_warnings():  # of reading alone, which is meant
            warnings.simplefilter("ignore")
            dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(path=str(path)), no_dist=True)
    except (Exception, FAILED) as error:  # the library checks little: whatever it stumbles over
        raise _damaged(path, error) from error


def _known(path: Path) -> Mapping[str, Any]:
    """What the headers say of all tensors; each has its parts, and asks for no more memory than these.

    Raises:
        CheckpointError: They do not.
    """
    try:
        reader = library().HuggingFaceStorageReader(path=str(path))
        known: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        for key, entry in known.items():
            parts = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
            if min(entry.size, default=0) < 0 or math.prod(entry.size) != parts:
                raise ValueError(f"{key} has {parts} numbers of {tuple(entry.size)}")
    except (Exception, FAILED) as error:  # the same
        raise _damaged(path, error) from error
    return known


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        "the tensors of a checkpoint are damaged, or not what is asked for",
        where=str(path),
        got=f"{type(error).__name__}: {error}"[:500],
        expected="safetensors files with every part of every tensor, once",
        fix="use an older checkpoint, or a model with the same parameters",
    )
