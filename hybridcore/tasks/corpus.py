"""Source text of Python's standard library, split by file."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.errors import TaskError

__all__ = ["Corpus", "load_corpus"]

EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "encodings", "lib2to3"}
)
"""Folders left out: installed packages, test data and generated tables."""

HELD_OUT = {4: "probes", 9: "validation"}
"""Every tenth file from these places on is held out."""


@attrs.frozen
class Corpus:
    """Bytes of whole files, uint8; no file is in two parts.

    Attributes:
        training: For training.
        probes: For probes.
        validation: For evaluation.
        files: Names of the files of each part, relative to the library's folder.
    """

    training: NDArray[np.uint8]
    probes: NDArray[np.uint8]
    validation: NDArray[np.uint8]
    files: dict[str, tuple[str, ...]]


def _sources(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*.py") if not EXCLUDED.intersection(p.relative_to(folder).parts))
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def load_corpus(max_bytes: int, folder: Path | None = None) -> Corpus:
    """Read files in alphabetical order until `max_bytes` are reached, then deal them to the parts.

    Args:
        max_bytes: Bytes at which no more files are read.
        folder: Folder with sources; the running Python's standard library if None.

    Raises:
        TaskError: There are too few source files to hold some out.
    """
    folder = folder or Path(sysconfig.get_paths()["stdlib"])
    parts: dict[str, list[tuple[str, bytes]]] = {"training": [], "probes": [], "validation": []}
    total = 0
    for index, path in enumerate(_sources(folder)):
        if total >= max_bytes:
            break
        content = path.read_bytes()
        total += len(content)
        name = path.relative_to(folder).as_posix()
        parts[HELD_OUT.get(index % 10, "training")].append((name, content))
    if not all(parts.values()):
        raise TaskError(
            "the standard library's source is not here",
            where=str(folder),
            got=f"{sum(map(len, parts.values()))} files",
            expected="at least 10 files *.py",
            fix="use a Python installation that ships its library as source files",
        )
    files = {part: tuple(name for name, _ in content) for part, content in parts.items()}
    return Corpus(_joined(parts["training"]), _joined(parts["probes"]), _joined(parts["validation"]), files)


def _joined(files: Sequence[tuple[str, bytes]]) -> NDArray[np.uint8]:
    return np.frombuffer(b"\n".join(content for _, content in files), np.uint8)
