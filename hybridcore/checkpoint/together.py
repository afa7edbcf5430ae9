"""Checkpoints that all processes of a run write and read together (F53, F71)."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from hybridcore import __version__
from hybridcore.checkpoint.files import UNFINISHED, discard, entries, seal
from hybridcore.checkpoint.manifest import Manifest
from hybridcore.checkpoint.ownership import belongs_to, require_same
from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.engine import Engine
from hybridcore.errors import CheckpointError, HybridCoreError

__all__ = ["SharedCheckpoints"]

logger = logging.getLogger("hybridcore")


_USUAL = (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError, HybridCoreError)


class _Run(Protocol):
    """A run as an adapter's `hybridize` gives it."""

    @property
    def engine(self) -> Engine: ...

    def resumed(self) -> None: ...


class SharedCheckpoints(ABC):
    """Writes and reads checkpoints of one run; every process must make every call.

    What happens in which order, on which process, and what becomes of failures is said here; how arrays
    travel, a framework's own library says in a subclass. All processes must see the same folder.

    A checkpoint that cannot be written costs the run a warning. Reading passes over damaged ones.

    Args:
        hybrid: The run.
        folder: Where to; made with the first checkpoint.
        every: Batches between checkpoints.
        keep: Checkpoints kept; the oldest go.
        rank: This process.
        processes: Their number.

    Attributes:
        extra: What the host gave to `after_batch` beside the run, as `resume` found it.
    """

    failures: ClassVar[tuple[type[BaseException], ...]] = ()
    """What the framework's library raises beside Python's own exceptions."""

    advice: ClassVar[str] = "start as many processes as wrote it, or choose another folder"
    """How to mend a folder of checkpoints that are none of this run's."""

    def __init__(
        self, hybrid: _Run, folder: str | Path, *, every: int, keep: int, rank: int, processes: int
    ) -> None:
        self._run, self._every = hybrid, every
        self._rank, self._processes = rank, processes
        self.store = CheckpointStore(folder, keep)
        self.extra: Any = None

    # -- what a subclass says ----------------------------------------------------------------------

    @abstractmethod
    def _pack(self, state: dict[str, Any]) -> Callable[[Path], None]:
        """Take a state apart on all processes; what then writes this process's share into a folder.

        Raises:
            CheckpointError: The state cannot be written at all.
        """

    @abstractmethod
    def _verified(self, path: Path) -> Manifest:
        """The manifest of a checkpoint whose files are sound, and all that a reader would find.

        Raises:
            CheckpointError: A file is damaged, missing, or unknown to the manifest.
        """

    @abstractmethod
    def _read(self, path: Path) -> dict[str, Any]:
        """The state in a sound checkpoint, for this process."""

    @abstractmethod
    def _from_first(self, value: Any) -> Any:
        """The first process's value, plain data, on all of them."""

    @abstractmethod
    def _everywhere(self, well: bool) -> bool:
        """Whether it is true on all processes."""

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
        engine = self._run.engine
        write = self._pack({"stepper": engine.state_dict(), "batches": batches, "extra": extra})
        folder = self.store.folder / f"batch-{batches:09d}"
        unfinished = folder.with_name(UNFINISHED + folder.name)

        def begin() -> None:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            discard(unfinished)
            unfinished.mkdir()

        def finish() -> None:
            files = entries(unfinished)
            seal(unfinished, folder, Manifest(engine.real_steps, batches, files, self._owner(), __version__))
            self.store.prune(self.store.keep)

        begun = self._together(begin, only_first=True)
        written = begun and self._together(lambda: write(unfinished))
        return written and self._together(finish, only_first=True)

    # -- reading -----------------------------------------------------------------------------------

    def resume(self) -> int:
        """Go on from the newest sound checkpoint, if there is one.

        Returns:
            Batches consumed until then; 0 for a new run.

        Raises:
            CheckpointError: There are checkpoints, and none that this run can go on from.
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
                self._run.engine.load_state_dict(loaded["stepper"])
                self._run.resumed()
                self.extra = loaded["extra"]
                if self._rank == 0:
                    self.store.set_aside(int(loaded["batches"]))
                return int(loaded["batches"])
            refused = refused or f"{name} cannot be read"
        if refused is not None:
            raise CheckpointError(
                "no checkpoint of this run is left to go on from",
                where=str(self.store.folder),
                got=refused.splitlines()[0],
                expected="a sound checkpoint of the same configuration, model and number of processes",
                fix=self.advice,
            )
        return 0

    def _problem(self, path: Path) -> str | None:
        try:
            require_same(self._verified(path).belongs_to, self._owner(), str(path))
        except (CheckpointError, OSError) as error:
            return str(error)
        return None

    # -- together ----------------------------------------------------------------------------------

    def _owner(self) -> dict[str, Any]:
        engine = self._run.engine
        return {**belongs_to(engine.config, "hybrid", engine.adapter), "processes": self._processes}

    def _together(self, action: Callable[[], object], *, only_first: bool = False) -> bool:
        """Do something on all processes, or on the first; whether it went well on all of them."""
        well = True
        caught: tuple[type[BaseException], ...] = (*_USUAL, *self.failures)
        try:
            if self._rank == 0 or not only_first:
                action()
        except caught as error:
            logger.warning("checkpoints in %s: %s: %s", self.store.folder, type(error).__name__, error)
            well = False
        return self._everywhere(well)
