"""Writing checkpoints beside the training: one thread at a time, no error that stops a run."""

from __future__ import annotations

import logging
import threading

from hybridcore.checkpoint.files import Contents
from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.errors import CheckpointError

__all__ = ["CheckpointWriter"]

logger = logging.getLogger("hybridcore")


class CheckpointWriter:
    """Writes to a store; a checkpoint that cannot be written costs the run nothing but itself.

    Args:
        store: Where to.
        asynchronous: Write in a thread; the next checkpoint waits until the one before is on disk.

    Attributes:
        failures: Checkpoints in a row, up to the latest, that could not be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = CheckpointStore(folder)
        ...     writer = CheckpointWriter(store, asynchronous=True)
        ...     writer.write(Contents(1, 1, {}, {"dict": {}}, {}))
        ...     writer.close()
        ...     [path.name for path in store.paths()]
        ['batch-000000001']
    """

    def __init__(self, store: CheckpointStore, *, asynchronous: bool = False) -> None:
        self._store, self._asynchronous = store, asynchronous
        self._thread: threading.Thread | None = None
        self.failures = 0

    def write(self, contents: Contents) -> None:
        """Write a checkpoint, or begin to; `contents` must not change any more."""
        self.close()
        if not self._asynchronous:
            self._write(contents)
            return
        self._thread = threading.Thread(target=self._write, args=(contents,), name="hybridcore-checkpoint")
        self._thread.start()

    def failed(self, step: int, error: Exception) -> None:
        """Note that a checkpoint is missing: the first of several in a row is warned of, none stops a run."""
        level = logging.DEBUG if self.failures else logging.WARNING
        logger.log(level, "no checkpoint of step %d, the next ones are tried: %s", step, error)
        self.failures += 1

    def _write(self, contents: Contents) -> None:
        try:
            self._store.write(contents)
        except CheckpointError as error:
            self.failed(contents.step, error)
            return
        if self.failures:
            logger.info("checkpoints are written again, after %d that were not", self.failures)
        self.failures = 0

    def close(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
