"""Checkpoints of runs on many processes, through `torch.distributed.checkpoint` (F53, F71)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from hybridcore import __version__
from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.files import UNFINISHED, discard, entries, seal
from hybridcore.checkpoint.manifest import Manifest
from hybridcore.checkpoint.ownership import belongs_to, require_same
from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.errors import CheckpointError, HybridCoreError
from hybridcore_torch.hybrid import Hybrid
from hybridcore_torch.parameters import plain_name, unwrap
from hybridcore_torch.rank_files import FAILED, library, load_into, read_state, verified
from hybridcore_torch.sharding import reshard

__all__ = ["RankCheckpoints", "load_weights"]

logger = logging.getLogger("hybridcore")

_WEIGHTS = "weights."


class RankCheckpoints:
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

    def __init__(self, hybrid: Hybrid, folder: str | Path, *, every: int = 100, keep: int = 2) -> None:
        library()
        self._hybrid, self._adapter = hybrid, hybrid.adapter
        self._every = every
        self.store = CheckpointStore(folder, keep)
        self.extra: Any = None
        self._many = self._adapter.world_size > 1
        self._rank = distributed.get_rank() if self._many else 0

    # -- writing -----------------------------------------------------------------------------------

    def after_batch(self, batches: int, extra: Any = None) -> None:
        """Write a checkpoint where one is due.

        Args:
            batches: Batches consumed so far.
            extra: What the training loop itself must know again, plain data and arrays.
        """
        if self._every and batches % self._every == 0:
            self.save(batches, extra)

    def save(self, batches: int, extra: Any = None) -> bool:
        """Write a checkpoint now; whether it was written.

        Raises:
            CheckpointError: The state cannot be written at all.
        """
        engine = self._hybrid.engine
        encoder = Encoder(self._adapter.snapshot_state, self._adapter.xp)
        tree = encoder.encode({"stepper": engine.state_dict(), "batches": batches, "extra": extra})
        tensors = self._named(tree, encoder.arrays)
        folder = self.store.folder / f"batch-{batches:09d}"
        unfinished = folder.with_name(UNFINISHED + folder.name)
        begun = self._together(lambda: self._begin(unfinished), only_first=True)
        written = begun and self._together(lambda: self._write(tensors, unfinished))
        manifest = {"step": engine.real_steps, "batches": batches, "belongs_to": self._belongs_to()}
        done = written and self._together(lambda: self._seal(unfinished, folder, manifest), only_first=True)
        if done and self._rank == 0:
            self.store.prune(self.store.keep)
        return done

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

    def _begin(self, unfinished: Path) -> None:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        discard(unfinished)
        unfinished.mkdir()

    def _write(self, tensors: dict[str, torch.Tensor], unfinished: Path) -> None:
        dcp = library()
        writer = dcp.HuggingFaceStorageWriter(path=str(unfinished), save_distributed=True)
        dcp.save(tensors, storage_writer=writer, no_dist=not self._many)

    def _seal(self, unfinished: Path, folder: Path, manifest: dict[str, Any]) -> None:
        seal(unfinished, folder, Manifest(files=entries(unfinished), version=__version__, **manifest))

    # -- reading -----------------------------------------------------------------------------------

    def resume(self) -> int:
        """Go on from the newest sound checkpoint, if there is one.

        Returns:
            Batches consumed until then; 0 for a new run.

        Raises:
            CheckpointError: There are checkpoints of another run, and none of this one.
        """
        refused: str | None = None
        for name in self._from_first([path.name for path in reversed(self.store.paths())]):
            path = self.store.folder / name
            problem = self._from_first(self._problem(path) if self._rank == 0 else None)
            if problem is not None:
                refused = refused or problem
                if self._rank == 0:
                    logger.warning("checkpoint %s is passed over: %s", name, problem)
                continue
            loaded: dict[str, Any] = {}
            if self._together(lambda path=path, into=loaded: into.update(self._read(path))):  # type: ignore[misc]
                self._hybrid.engine.load_state_dict(loaded["stepper"])
                self._hybrid.resumed()
                self.extra = loaded["extra"]
                if self._rank == 0:
                    self.store.set_aside(int(loaded["batches"]))
                return int(loaded["batches"])
        if refused is not None:
            raise CheckpointError(
                "no checkpoint of this run is left to go on from",
                where=str(self.store.folder),
                got=refused.splitlines()[0],
                expected="a sound checkpoint of the same configuration, model and number of processes",
                fix="start as many processes as wrote it, choose another folder, or take its weights alone: "
                "hybridcore_torch.rank_checkpoints.load_weights",
            )
        return 0

    def _problem(self, path: Path) -> str | None:
        try:
            require_same(verified(path).belongs_to, self._belongs_to(), str(path))
        except CheckpointError as error:
            return str(error)
        return None

    def _read(self, path: Path) -> dict[str, Any]:
        tree, arrays = read_state(path, self._rank)
        adapter = self._adapter
        decoder = Decoder(arrays, adapter.snapshot_from_state, adapter.xp, adapter.read_params())
        state: dict[str, Any] = decoder.decode(tree)
        return state

    # -- together ----------------------------------------------------------------------------------

    def _belongs_to(self) -> dict[str, Any]:
        engine = self._hybrid.engine
        return {**belongs_to(engine.config, "hybrid", self._adapter), "processes": self._adapter.world_size}

    def _from_first(self, value: Any) -> Any:
        """The first process's value, on all of them."""
        if not self._many:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def _together(self, action: Callable[[], object], only_first: bool = False) -> bool:
        """Do something on all processes, or on the first; whether it went well on all of them."""
        well = 1.0
        try:
            if self._rank == 0 or not only_first:
                action()
        except (OSError, RuntimeError, ValueError, KeyError, HybridCoreError, FAILED) as error:
            logger.warning("checkpoints in %s: %s: %s", self.store.folder, type(error).__name__, error)
            well = 0.0
        return bool(self._adapter.gather_scalars([well]).min() > 0.0)


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
