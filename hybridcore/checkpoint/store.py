"""The checkpoints of one run: a folder of them, the newest kept."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from hybridcore import __version__
from hybridcore.checkpoint.files import UNFINISHED, Contents, discard, read, write
from hybridcore.errors import CheckpointError

__all__ = ["CheckpointStore"]

logger = logging.getLogger("hybridcore")

_NAME = re.compile(r"batch-\d{9,15}")
_ASIDE = "set-aside-"


class CheckpointStore:
    """A folder of checkpoints, named after the batches consumed before each.

    Args:
        folder: The folder; made with the first checkpoint.
        keep: Checkpoints kept; the oldest go.

    Example:
        >>> CheckpointStore("nowhere").paths()
        []
    """

    def __init__(self, folder: str | Path, keep: int = 3) -> None:
        self.folder, self.keep = Path(folder), keep

    def paths(self) -> list[Path]:
        """Folders of the checkpoints, oldest first; links and other things are passed over.

        Raises:
            CheckpointError: The folder cannot be read.
        """
        try:
            if not self.folder.is_dir():
                return []
            found = [p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)]
            kept = [p for p in found if p.is_dir() and not p.is_symlink()]
        except OSError as error:
            raise CheckpointError(
                f"the folder of the checkpoints cannot be read: {error.strerror}",
                where=str(self.folder),
                expected="a folder that this user may list",
            ) from error
        return sorted(kept, key=lambda p: int(p.name[6:]))

    def write(self, contents: Contents) -> Path:
        """Write one checkpoint, then remove what is older than the newest `keep`.

        Raises:
            CheckpointError: It cannot be written; the older ones are untouched.
        """
        path = self.folder / f"batch-{contents.batches:09d}"
        write(contents, path, __version__)
        self.prune(self.keep)
        return path

    def prune(self, keep: int) -> list[Path]:
        """Remove all but the newest `keep` checkpoints, and what interrupted writing has left.

        Returns:
            The folders of the checkpoints that were removed.
        """
        return self.remove(self.paths()[:-keep] if keep > 0 else self.paths())

    def remove(self, paths: list[Path]) -> list[Path]:
        """Remove these checkpoints, and what interrupted writing has left.

        Returns:
            The folders that are gone; the first one that cannot be removed ends it, with a warning.
        """
        gone = []
        try:
            for path in paths:
                discard(path)
                gone.append(path)
            for path in self.folder.glob(f"{UNFINISHED}*") if self.folder.is_dir() else ():
                discard(path)
        except OSError as error:
            logger.warning("old checkpoints in %s cannot be removed: %s", self.folder, error)
        return gone

    def sound(self) -> Iterator[tuple[Path, Contents]]:
        """Checkpoints that can be read, newest first; each other one is warned of."""
        for path in reversed(self.paths()):
            try:
                yield path, read(path)
            except CheckpointError as error:
                logger.warning("checkpoint %s is passed over: %s", path.name, error)

    def set_aside(self, batches: int) -> None:
        """Rename checkpoints of more batches than a run goes on from, so that they never count again."""
        for path in self.paths():
            if int(path.name[6:]) > batches:
                try:
                    aside = path.with_name(_ASIDE + path.name)
                    discard(aside)
                    path.rename(aside)
                except OSError as error:
                    logger.warning("checkpoint %s cannot be set aside: %s", path.name, error)
