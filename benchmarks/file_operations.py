"""File operations that write, one point in time after another: to kill a process there, or to fail there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors import numpy as safetensors

__all__ = ["Point", "watched"]

Point = Callable[[str, str], None]
"""Called as ``point(operation, moment)``; the moments are "before", "half" and "after"."""


@contextmanager
def watched(point: Point) -> Iterator[None]:
    """Call `point` before, in the middle of and after each operation that changes files.

    In the middle of a write, half of the file is there; in the middle of a removal, one file is gone. Covers
    what checkpoints are written with: `Path.write_text` and `write_bytes`, safetensors, fsync, mkdir, rename,
    replace, unlink and rmtree.
    """
    with ExitStack() as patches:
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
