"""One checkpoint on disk: written beside its place and renamed into it, read only after its checksums."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from hybridcore.checkpoint.codec import Arrays
from hybridcore.checkpoint.manifest import FileEntry, Manifest, parse_json
from hybridcore.errors import CheckpointError

__all__ = [
    "EITHER",
    "SHARDS",
    "UNFINISHED",
    "Contents",
    "discard",
    "entries",
    "read",
    "read_manifest",
    "seal",
    "verify",
    "write",
]

ARRAYS, STATE, MANIFEST = "arrays.safetensors", "state.json", "manifest.json"
UNFINISHED = ".unfinished-"
"""Prefix of a folder that is being written or removed."""

SHARDS = re.compile(r"(shard-\d{5}-)?model-\d{5}-of-\d{5}\.safetensors")
"""Names of the files that the processes of one run write."""

EITHER = re.compile(rf"{re.escape(ARRAYS)}|{re.escape(STATE)}|{SHARDS.pattern}")
"""Names of the files of a checkpoint of one process, or of many."""


@attrs.frozen(eq=False)
class Contents:
    """A checkpoint in memory.

    Attributes:
        step: Real steps so far.
        batches: Batches consumed so far.
        belongs_to: See `Manifest`.
        tree: What `Encoder.encode` gave.
        arrays: The encoder's arrays.
    """

    step: int
    batches: int
    belongs_to: dict[str, Any]
    tree: Any
    arrays: Arrays


def write(contents: Contents, folder: Path, version: str) -> None:
    """Write a checkpoint so that a reader sees all of it or nothing, also after a power cut.

    Raises:
        CheckpointError: The disk is full, the folder cannot be written, or the like; what was there stays.
    """
    parent, unfinished = folder.parent, folder.with_name(UNFINISHED + folder.name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        discard(unfinished)
        unfinished.mkdir()
        safetensors.save_file(contents.arrays, unfinished / ARRAYS)
        text = json.dumps(contents.tree, separators=(",", ":"), allow_nan=False)
        (unfinished / STATE).write_text(text, encoding="utf-8")
        files = {name: _entry(unfinished / name) for name in (ARRAYS, STATE)}
        seal(
            unfinished, folder, Manifest(contents.step, contents.batches, files, contents.belongs_to, version)
        )
    except (OSError, SafetensorError, ValueError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"a checkpoint cannot be written: {error}",
            where=str(folder),
            expected="a folder that can be written, and room on its disk",
            fix="free room, or set checkpoint.directory",
        ) from error


def entries(folder: Path) -> dict[str, FileEntry]:
    """Sizes and checksums of all files in a folder and below it, by their names from there."""
    found = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): _entry(path) for path in found}


def seal(unfinished: Path, folder: Path, manifest: Manifest) -> None:
    """Make the files in a folder a checkpoint: write the manifest, and rename the folder into its place.

    Args:
        unfinished: The folder with all files but the manifest.
        folder: Its place, beside it; what is there goes.
        manifest: Knows the files.

    Raises:
        OSError: The disk is full, or the like.
    """
    (unfinished / MANIFEST).write_bytes(manifest.dump())
    below = {parent for name in manifest.files for parent in (unfinished / name).parents}
    for path in (*(unfinished / name for name in (*manifest.files, MANIFEST)), *below):
        if path.is_relative_to(unfinished):
            _sync(path)
    if folder.exists():
        discard(folder)
    os.replace(unfinished, folder)  # noqa: PTH105 - Path.replace is the same call
    _sync(folder.parent)


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path.stat().st_size, digest)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def discard(folder: Path) -> None:
    """Remove a checkpoint; an interruption leaves a folder that is none, never half a checkpoint."""
    if not folder.exists():
        return
    doomed = folder
    if not folder.name.startswith(UNFINISHED):
        doomed = folder.with_name(f"{UNFINISHED}removed-{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    shutil.rmtree(doomed)


def read_manifest(folder: Path, names: re.Pattern[str] | None = None) -> Manifest:
    """The manifest of a checkpoint; `names` is the pattern of its files, where they are not the usual two.

    Raises:
        CheckpointError: It is missing, damaged, or of another format.
    """
    return Manifest.parse(_content(folder / MANIFEST, 1 << 20), str(folder / MANIFEST), names)


def verify(folder: Path, names: re.Pattern[str] | None = None) -> Manifest:
    """Compare all files with their checksums; `names` as in `read_manifest`.

    Raises:
        CheckpointError: One is missing, cut off or changed.
    """
    manifest = read_manifest(folder, names)
    for name, entry in manifest.files.items():
        _regular(folder / name)
        for parent in Path(name).parents[:-1]:
            if (folder / parent).is_symlink():
                _changed(folder / parent, entry)
        try:
            found = _entry(folder / name)
        except OSError as error:
            raise _unreadable(folder / name, error) from None
        if found != entry:
            _changed(folder / name, entry)
    return manifest


def read(folder: Path) -> Contents:
    """Read a checkpoint whose checksums are right.

    Raises:
        CheckpointError: It is not sound.
    """
    manifest = read_manifest(folder)
    held = {}
    for name, entry in manifest.files.items():
        held[name] = _content(folder / name, entry.nbytes)
        if FileEntry(len(held[name]), hashlib.sha256(held[name]).hexdigest()) != entry:
            _changed(folder / name, entry)
    try:
        arrays = safetensors.load(held[ARRAYS])
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"the arrays of a checkpoint are damaged: {error}",
            where=str(folder / ARRAYS),
            fix="use an older checkpoint",
        ) from error
    tree = parse_json(held[STATE], str(folder / STATE))
    return Contents(manifest.step, manifest.batches, manifest.belongs_to, tree, arrays)


def _regular(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(
            "a file of a checkpoint is no plain file", where=str(path), expected="a file, not a link"
        )


def _content(path: Path, most: int) -> bytes:
    """Content of a plain file, at most one byte more than `most`."""
    _regular(path)
    try:
        with path.open("rb") as file:
            # A manifest may claim any size, and a read that size takes as much memory before it begins.
            return file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path.name} of a checkpoint cannot be read: {error.strerror}",
        where=str(path),
        fix="use an older checkpoint",
    )


def _changed(path: Path, entry: FileEntry) -> None:
    raise CheckpointError(
        "a file of a checkpoint is not what was written",
        where=str(path),
        expected=f"{entry.nbytes} bytes with the checksum {entry.sha256[:16]}...",
        fix="use an older checkpoint",
    )
