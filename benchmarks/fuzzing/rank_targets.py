"""What PyTorch's processes read: manifests and files of sharded checkpoints, and the adapter's snapshots."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from benchmarks.fuzzing import mutations
from benchmarks.fuzzing.targets import TREE, StateFile, Target, sealed
from hybridcore.checkpoint.codec import Decoder
from hybridcore.checkpoint.files import SHARDS, verify
from hybridcore.checkpoint.manifest import Manifest

__all__ = ["RankManifest", "Shards", "TorchState"]

_PLACES = "DCP_SHARDING_INFO"
_FIRST, _SECOND = (f"shard-{number:05d}-model-00001-of-00001.safetensors" for number in (1, 2))


def _file(arrays: dict[str, np.ndarray[Any, Any]], offsets: dict[str, list[int]]) -> bytes:
    places = {name: {"saved_offsets": offsets.get(name, [0] * a.ndim)} for name, a in arrays.items()}
    about = {"format": "pt", "DCP_VERSION": "1.0", _PLACES: json.dumps(places)}
    return safetensors.save(arrays, about)


def _files() -> tuple[bytes, bytes]:
    """Files of two processes; each has its own random numbers, and its part of a weight."""
    tree = np.frombuffer(json.dumps(TREE).encode(), dtype=np.uint8)
    own = {"array.0": np.arange(4.0), "array.1": np.array(3.5)}
    first = {"all.tree": tree, **{f"rank0.{key}": array for key, array in own.items()}}
    second = {f"rank1.{key}": array for key, array in own.items()}
    part = np.ones((2, 3), dtype=np.float32)
    return (
        _file({**first, "weights.w": part}, {}),
        _file({**second, "weights.w": part}, {"weights.w": [2, 0]}),
    )


def _manifest(folder: Path, contents: dict[str, bytes]) -> bytes:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = {
        name: {"nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    text = {"format": 1, "step": 1, "batches": 1, "files": files, "belongs_to": {"processes": 2}}
    return sealed(json.dumps({**text, "version": "0.1.0"}).encode())


class RankManifest(Target):
    """``manifest.json`` of a sharded checkpoint, with a right seal."""

    mutate = staticmethod(mutations.json_bytes)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = [_manifest(folder, dict(zip((_FIRST, _SECOND), _files(), strict=True)))]

    def put(self, data: bytes) -> None:
        self.data = data
        (self.folder / "manifest.json").write_bytes(sealed(data))

    def read(self) -> None:
        try:
            Manifest.parse(self.data, "manifest.json", SHARDS)
        finally:
            verify(self.folder, SHARDS)


class Shards(Target):
    """The first process's file of a sharded checkpoint, whose checksum is right."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        first, self._second = _files()
        self.seeds = [first]

    @staticmethod
    def mutate(data: bytes, rng: random.Random) -> bytes:
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + length])
            places = header["__metadata__"][_PLACES]
        except (ValueError, KeyError, TypeError, RecursionError):
            return mutations.safetensors_bytes(data, rng)
        if rng.random() < 0.5:
            changed = mutations.json_bytes(str(places).encode("utf-8", "replace"), rng)
            header["__metadata__"][_PLACES] = changed.decode("utf-8", "replace")
            text = json.dumps(header).encode("utf-8", "replace")
            return len(text).to_bytes(8, "little") + text + data[8 + length :]
        return mutations.safetensors_bytes(data, rng)

    def put(self, data: bytes) -> None:
        (self.folder / "manifest.json").write_bytes(
            _manifest(self.folder, {_FIRST: data, _SECOND: self._second})
        )

    def read(self) -> None:
        from hybridcore_torch.rank_files import read_state, verified

        verified(self.folder)
        tree, arrays = read_state(self.folder, 0)
        Decoder(arrays).decode(tree)


class TorchState(StateFile):
    """``state.json`` decoded with the snapshots of the PyTorch adapter."""

    def adapter(self) -> Any:
        import torch

        from hybridcore_torch import TorchAdapter

        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        adapter = TorchAdapter(model, optimizer, lambda m, b: (m(b[0]) - b[1]).square().mean(1))
        adapter.train_step((torch.ones(4, 3), torch.zeros(4, 2)))
        return adapter
