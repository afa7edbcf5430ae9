"""Checkpoints of one recorded run: when they are written, and going on from the newest sound one."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.files import Contents
from hybridcore.checkpoint.ownership import belongs_to, require_same
from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.checkpoint.writer import CheckpointWriter
from hybridcore.config import CheckpointConfig, HybridConfig
from hybridcore.errors import CheckpointError
from hybridcore.metrics import MetricsWriter
from hybridcore.protocols import Adapter, CheckpointAdapter

__all__ = ["BEST", "AVERAGE", "RunCheckpoints", "checkpoint_folder"]

logger = logging.getLogger("hybridcore")

BEST, AVERAGE = "best.safetensors", "average.safetensors"
"""Weights for the framework's own users: of the lowest validation loss, and the final average."""


class _Stateful(Protocol):
    @property
    def real_steps(self) -> int: ...

    def state_dict(self) -> dict[str, Any]: ...


def checkpoint_folder(config: CheckpointConfig, run: Path) -> Path:
    """Where the checkpoints of the run in the folder `run` lie.

    Example:
        >>> checkpoint_folder(CheckpointConfig(directory="safe"), Path("/runs/digits/seed0")).as_posix()
        'safe/digits-seed0'
    """
    if not config.directory:
        return run / "checkpoints"
    return Path(config.directory) / "-".join(run.absolute().parts[-2:])


class RunCheckpoints:
    """Writes and reads the checkpoints of a run.

    Args:
        config: The run's configuration.
        arm: Its arm.
        adapter: Its model.
        out_dir: Its folder.
        metrics: Its record, which a checkpoint knows its place in.

    Raises:
        CheckpointError: The adapter's snapshots cannot leave the process.
    """

    def __init__(
        self, config: HybridConfig, arm: str, adapter: Adapter, out_dir: Path, metrics: MetricsWriter
    ) -> None:
        if "checkpoints" not in adapter.capabilities or not isinstance(adapter, CheckpointAdapter):
            raise CheckpointError(
                f"the adapter {adapter.name!r} cannot write its snapshots",
                where="checkpoint.every",
                got=sorted(adapter.capabilities),
                expected="the capability 'checkpoints': snapshot_state, snapshot_from_state, export_weights",
                fix="set checkpoint.every = 0, or update the adapter",
            )
        self._config, self._metrics = config.checkpoint, metrics
        self._adapter: CheckpointAdapter = adapter
        self.store = CheckpointStore(checkpoint_folder(config.checkpoint, out_dir), config.checkpoint.keep)
        self._writer = CheckpointWriter(self.store, asynchronous=config.checkpoint.asynchronous)
        self._belongs_to = belongs_to(config, arm, adapter)
        self._taken = False
        self._unwritten: set[str] = set()

    def require_none(self) -> None:
        """Make sure that a new run does not mix its checkpoints with those of an earlier one.

        Raises:
            CheckpointError: The folder holds some.
        """
        if self.store.paths():
            raise CheckpointError(
                "the folder holds checkpoints of an earlier run",
                where=str(self.store.folder),
                got=self.store.paths()[-1].name,
                expected="no checkpoints",
                fix="go on with that run by --resume, or remove them: "
                f"hybridcore checkpoints prune {self.store.folder} --keep 0",
            )

    def after_batch(self, batches: int, stepper: _Stateful, loop: dict[str, Any]) -> None:
        """Write a checkpoint where one is due.

        Args:
            batches: Batches consumed so far.
            stepper: The engine, or the plain loop.
            loop: What the training loop itself must know again.
        """
        if not self._config.every or batches % self._config.every:
            return
        encoder = Encoder(self._adapter.snapshot_state, self._adapter.xp)
        try:
            state = {**loop, "stepper": stepper.state_dict(), "metrics": self._metrics.sync()}
            tree = encoder.encode(state)
        except (CheckpointError, OSError) as error:
            if not self._taken and isinstance(error, CheckpointError):
                raise  # a run whose checkpoints are impossible should not get far
            self._writer.close()
            self._writer.failed(stepper.real_steps, error)
            return
        self._taken = True
        belongs = {**self._belongs_to, "record": self._record()}
        self._writer.write(Contents(stepper.real_steps, batches, belongs, tree, encoder.arrays))

    def _record(self) -> str:
        """Checksum of the record's first line, which no other run shares."""
        try:
            with self._metrics.path.open("rb") as file:
                return hashlib.sha256(file.readline()).hexdigest()
        except OSError:
            return ""

    def states(self) -> Iterator[dict[str, Any]]:
        """States to go on from, newest first; what cannot be used is warned of and passed over.

        Raises:
            CheckpointError: There is none; says why the newest could not be used.
        """
        refused: CheckpointError | None = None
        wanted = {**self._belongs_to, "record": self._record()}
        for path, contents in self.store.sound():
            try:
                require_same(contents.belongs_to, wanted, str(path))
                state = self._decode(contents)
                self._require_record(state["metrics"], path)
            except CheckpointError as error:
                refused = refused or error
                logger.warning("checkpoint %s is passed over: %s", path.name, error)
                continue
            logger.info("going on from %s, step %d", path, contents.step)
            yield state
        if refused is not None:
            raise refused
        raise CheckpointError(
            "there is no checkpoint to go on from",
            where=str(self.store.folder),
            got=f"{len(self.store.paths())} checkpoints, none of them sound",
            expected="a checkpoint that `hybridcore checkpoints verify` accepts",
            fix="begin a new run",
        )

    def _decode(self, contents: Contents) -> dict[str, Any]:
        adapter = self._adapter
        decoder = Decoder(contents.arrays, adapter.snapshot_from_state, adapter.xp, adapter.read_params())
        state = decoder.decode(contents.tree)
        keys = {"stepper", "metrics", "elapsed", "batches", "evaluations"}
        if not isinstance(state, dict) or not keys <= set(state) or state["batches"] != contents.batches:
            raise CheckpointError("the state is damaged", where="state.json", expected=f"the keys {keys}")
        return state

    def _require_record(self, position: Any, path: Path) -> None:
        size = self._metrics.path.stat().st_size if self._metrics.path.is_file() else 0
        if type(position) is not int or not 0 < position <= size:
            raise CheckpointError(
                "the record of the run is shorter than at the checkpoint",
                where=str(path),
                got=f"{size} bytes of {self._metrics.path}",
                expected=f"{position} bytes or more",
                fix="use an older checkpoint",
            )

    def went_on(self, batches: int) -> None:
        """A run goes on from this many batches: newer checkpoints count no more."""
        self.store.set_aside(batches)

    def export(self, name: str) -> None:
        """Write the weights of now for the framework's own users; of failures in a row one is warned of."""
        path = self.store.folder / name
        unfinished = path.with_name(f".{name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._adapter.export_weights(str(unfinished))
            os.replace(unfinished, path)  # noqa: PTH105 - Path.replace is the same call
        except Exception as error:  # each framework has its own
            level = logging.DEBUG if name in self._unwritten else logging.WARNING
            logger.log(level, "the weights cannot be written to %s: %s", path, error)
            self._unwritten.add(name)
            with contextlib.suppress(OSError):
                unfinished.unlink()
        else:
            self._unwritten.discard(name)

    def close(self) -> None:
        """Wait until the last checkpoint is on disk."""
        self._writer.close()
