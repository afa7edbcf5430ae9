"""`hybridcore checkpoints`: what a run has saved, whether it is sound, removing what is old."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App
from rich.table import Table
from rich.text import Text

from hybridcore.checkpoint.files import EITHER, read_manifest, verify
from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.cli.common import output
from hybridcore.errors import CheckpointError

__all__ = ["app", "list_", "prune", "verify_"]

app = App(name="checkpoints", help="List, verify and prune the checkpoints of a run.")


def _store(directory: Path) -> CheckpointStore:
    """The store in a folder, or in its sub-folder ``checkpoints``."""
    for folder in (directory, directory / "checkpoints"):
        store = CheckpointStore(folder)
        if store.paths():
            return store
    if not directory.is_dir():
        raise CheckpointError(
            "there is no such folder",
            where=str(directory),
            expected="the folder of a run, or that of its checkpoints",
        )
    raise CheckpointError(
        "the folder holds no checkpoints",
        where=str(directory),
        expected="the folder of a run, or that of its checkpoints",
        fix="set checkpoint.every in the configuration of the run",
    )


@app.command(name="list")
def list_(directory: Path) -> None:
    """List checkpoints, oldest first, with step, batches, size and version.

    Args:
        directory: Folder of a run, or of its checkpoints.
    """
    table = Table(box=None, pad_edge=False)
    for title in ("checkpoint", "step", "batches", "MiB", "hybridcore", "arm"):
        table.add_column(title, no_wrap=True)
    for path in _store(directory).paths():
        try:
            found = read_manifest(path, EITHER)
        except CheckpointError as error:
            table.add_row(path.name, "", "", "", "", Text(error.what, "red"))
            continue
        size = sum(entry.nbytes for entry in found.files.values()) / 2**20
        arm = str(found.belongs_to.get("arm", ""))
        table.add_row(path.name, str(found.step), str(found.batches), f"{size:.2f}", found.version, Text(arm))
    output().print(table)


@app.command(name="verify")
def verify_(directory: Path) -> int:
    """Compare every file with its checksum; exit with 1 if one is damaged.

    Args:
        directory: Folder of a run, or of its checkpoints.
    """
    damaged = 0
    for path in _store(directory).paths():
        try:
            verify(path, EITHER)
            output().print(f"{path.name}: sound")
        except CheckpointError as error:
            damaged += 1
            output().print(Text(f"{path.name}: {error}", "red"))
    return 1 if damaged else 0


@app.command
def prune(directory: Path, *, keep: int = 1) -> int:
    """Remove all but the newest sound checkpoints; exit with 1 if one cannot be removed.

    Damaged ones never count as kept: where the newest is damaged, the one to go on from is older.

    Args:
        directory: Folder of a run, or of its checkpoints.
        keep: How many sound ones stay; 0 removes all.
    """
    if keep < 0:
        raise CheckpointError(
            "no number of checkpoints to keep", where="--keep", got=keep, expected="0, to remove all, or more"
        )
    store = _store(directory)
    paths = store.paths()
    sound = [path for path in paths if _is_sound(path)] if keep else []
    first = paths.index(sound[-keep]) if keep and len(sound) >= keep else 0
    doomed = paths[:first] if keep else paths
    gone = store.remove(doomed)
    for path in gone:
        output().print(f"removed {path.name}")
    for path in paths:
        if keep and path not in doomed and path not in sound:
            output().print(Text(f"kept {path.name}: it is damaged, see hybridcore checkpoints verify", "red"))
    return 0 if gone == doomed else 1


def _is_sound(path: Path) -> bool:
    try:
        verify(path, EITHER)
    except CheckpointError:
        return False
    return True
