"""File operations that write, one point in time after another: to kill a process there, or to fail there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors import numpy as safetensors

from hybridcore import metrics

__all__ = ["RECORD", "Point", "watched"]

RECORD = "record-"
"""How the operations on a run's record begin; all others belong to checkpoints, weights and summaries."""

Point = Callable[[str, str], None]
"""Called as ``point(operation, moment)``; the moments are "before", "half" and "after"."""


@contextmanager
def watched(point: Point) -> Iterator[None]:
    """Call `point` before, in the middle of and after each operation that changes files.

    In the middle of a write, half of the file is there, and of the record's lines half of the bytes; in the
    middle of a removal, one file is gone. Covers what checkpoints are written with: `Path.write_text` and
    `write_bytes`, safetensors, fsync, mkdir, rename, replace and rmtree; and what `MetricsWriter` does to the
    record: writing lines, and cutting off what follows a checkpoint.
    """
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(metrics, "FileIO", _record(point)))
        for owner, name, half in (
            (Path, "write_text", _cut),
            (Path, "write_bytes", _cut),
            (safetensors, "save_file", lambda _, path, *rest, **named: _cut(path)),
            (shutil, "rmtree", _remove_one),
            (os, "fsync", None),
            (os, "mkdir", None),
            (os, "rename", None),
            (os, "replace", None),
        ):
            made = _wrapped(getattr(owner, name), name, half, point)
            patches.enter_context(mock.patch.object(owner, name, made))
        yield


def _wrapped(do: Callable[..., Any], name: str, half: Callable[..., None] | None, point: Point) -> Any:
    def operation(*arguments: Any, **named: Any) -> Any:
        point(name, "before")
        if half is _remove_one:
            half(*arguments)
            point(name, "half")
        done = do(*arguments, **named)
        if half is not None and half is not _remove_one:
            whole = half(*arguments)
            point(name, "half")
            whole()
        point(name, "after")
        return done

    return operation


def _record(point: Point) -> type[FileIO]:
    class Record(FileIO):
        def write(self, content: Any) -> int:
            point(f"{RECORD}write", "before")
            done = super().write(content[: len(content) // 2])
            try:
                point(f"{RECORD}write", "half")
            except OSError:
                return done  # a disk that fills up on the way takes a part, and fails at the next call
            done += super().write(content[done:])
            point(f"{RECORD}write", "after")
            return done

        def truncate(self, size: int | None = None) -> int:
            point(f"{RECORD}truncate", "before")
            left = super().truncate(size)
            point(f"{RECORD}truncate", "after")
            return left

    return Record


def _cut(path: str | Path, *_: Any, **__: Any) -> Callable[[], None]:
    """Leave half of a file; gives a function that makes it whole again."""
    path = Path(path)
    with path.open("rb") as file:
        content = file.read()
    os.truncate(path, len(content) // 2)

    def whole() -> None:
        with path.open("wb") as file:
            file.write(content)

    return whole


def _remove_one(folder: str | Path, *_: Any, **__: Any) -> None:
    found = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    if found and found[0].is_file():
        found[0].unlink()
