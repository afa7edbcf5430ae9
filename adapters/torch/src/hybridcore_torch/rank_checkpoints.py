"""Checkpoints of runs on many processes, through `torch.distributed.checkpoint` (F53, F71)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.manifest import Manifest
from hybridcore.checkpoint.together import SharedCheckpoints
from hybridcore_torch.hybrid import Hybrid
from hybridcore_torch.parameters import plain_name, unwrap
from hybridcore_torch.rank_files import FAILED, library, load_into, read_state, verified
from hybridcore_torch.sharding import reshard

__all__ = ["RankCheckpoints", "load_weights"]

_WEIGHTS = "weights."


class RankCheckpoints(SharedCheckpoints):
    """Writes and reads checkpoints of one run; every process must make every call.

    A checkpoint is a folder of safetensors files, one per process, written by
    `torch.distributed.checkpoint`: the weights under their own names, sharded as they are, and the state of
    the engine. What is the same on all processes is written once, the rest (random numbers, shards of the
    history) by each process for itself. All processes must see the same folder.

    A checkpoint that cannot be written costs the run a warning. Reading passes over damaged ones.

    Args:
        hybrid: The run.
        folder: Where to; made with the first checkpoint.
        every: Batches between checkpoints.
        keep: Checkpoints kept; the oldest go.

    Attributes:
        extra: What the host gave to `after_batch` beside the run, as `resume` found it.

    Raises:
        CheckpointError: This PyTorch cannot write safetensors from many processes.

    Example:
        >>> import tempfile
        >>> from hybridcore_torch import hybridize
        >>> torch.manual_seed(0) and None
        >>> model = nn.Linear(2, 1)
        >>> squared = lambda m, b: (m(b[0]) - b[1]).square().mean(1)
        >>> hybrid = hybridize(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn=squared)
        >>> batch = (torch.ones(4, 2), torch.zeros(4, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = RankCheckpoints(hybrid, folder, every=5)
        ...     for done in range(checkpoints.resume(), 7):
        ...         loss = hybrid.step(batch)
        ...         checkpoints.after_batch(done + 1)
        ...     checkpoints.resume()
        5
    """

    failures = (FAILED,)
    advice = (
        "start as many processes as wrote it, choose another folder, or take its weights alone: "
        "hybridcore_torch.rank_checkpoints.load_weights"
    )

    def __init__(self, hybrid: Hybrid, folder: str | Path, *, every: int = 100, keep: int = 2) -> None:
        library()
        self._adapter = hybrid.adapter
        self._many = self._adapter.world_size > 1
        rank = distributed.get_rank() if self._many else 0
        super().__init__(
            hybrid, folder, every=every, keep=keep, rank=rank, processes=self._adapter.world_size
        )

    def _pack(self, state: dict[str, Any]) -> Callable[[Path], None]:
        encoder = Encoder(self._adapter.snapshot_state, self._adapter.xp)
        tensors = self._named(encoder.encode(state), encoder.arrays)

        def write(folder: Path) -> None:
            dcp = library()
            writer = dcp.HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, no_dist=not self._many)

        return write

    def _named(self, tree: Any, arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
        """Tensors by the name they have in the checkpoint; what all processes have alike is ``all.``."""
        text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
        own = {f"array.{key}": torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}
        own["tree"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        digests = {key: _digest(tensor) for key, tensor in own.items()}
        first = self._from_first(digests)
        named = {
            (f"all.{key}" if first.get(key) == digests[key] else f"rank{self._rank}.{key}"): tensor
            for key, tensor in own.items()
        }
        return named | _named_weights(self._adapter.model)

    def _verified(self, path: Path) -> Manifest:
        return verified(path)

    def _read(self, path: Path) -> dict[str, Any]:
        tree, arrays = read_state(path, self._rank)
        adapter = self._adapter
        decoder = Decoder(arrays, adapter.snapshot_from_state, adapter.xp, adapter.read_params())
        state: dict[str, Any] = decoder.decode(tree)
        return state

    def _from_first(self, value: Any) -> Any:
        if not self._many:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def _everywhere(self, well: bool) -> bool:
        return bool(self._adapter.gather_scalars([float(well)]).min() > 0.0)


def load_weights(folder: str | Path, model: nn.Module) -> None:
    """Give a model the weights of a checkpoint, on any number of processes and sharded in any way.

    Args:
        folder: One checkpoint, ``<folder>/batch-<number>``.
        model: A model with the same parameters; every process must call.

    Raises:
        CheckpointError: The checkpoint is damaged, or lacks a parameter.
    """
    path = Path(folder)
    verified(path)
    load_into(_named_weights(model), path)


def _named_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    reshard(model)
    named = unwrap(model).named_parameters()
    return {_WEIGHTS + plain_name(name): param.detach() for name, param in named}


def _digest(tensor: torch.Tensor) -> str:
    kind = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return hashlib.sha256(kind + tensor.numpy().tobytes()).hexdigest()
