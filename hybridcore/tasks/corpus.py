"""Texts that ship with Python: its library's source, split by file, and its manual, split by topic."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.errors import TaskError

__all__ = ["Corpus", "load_corpus", "load_manual"]

EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "encodings", "lib2to3"}
)
"""Folders left out: installed packages, test data and generated tables."""

HELD_OUT = {4: "probes", 9: "validation"}
"""Every tenth file from these places on is held out."""

MANUAL_HELD_OUT = {7: "probes", 5: "validation"}
"""The same for the manual's topics, places at which they are neither very long nor very short."""

_Parts = dict[str, list[tuple[str, bytes]]]


@attrs.frozen
class Corpus:
    """Bytes of whole files or topics, uint8; none is in two parts.

    Attributes:
        training: For training.
        probes: For probes.
        validation: For evaluation.
        files: Names of the files or topics of each part; files are relative to the library's folder.
    """

    training: NDArray[np.uint8]
    probes: NDArray[np.uint8]
    validation: NDArray[np.uint8]
    files: dict[str, tuple[str, ...]]


def _sources(folder: Path, exclude: Collection[str]) -> list[Path]:
    without = EXCLUDED.union(exclude)
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in without]  # excluded folders are not entered
        found += [Path(parent, name) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def load_corpus(max_bytes: int, folder: Path | None = None, exclude: Collection[str] = ()) -> Corpus:
    """Read files in alphabetical order until `max_bytes` are reached, then deal them to the parts.

    Args:
        max_bytes: Bytes at which no more files are read.
        folder: Folder with sources; the running Python's standard library if None.
        exclude: Names of further folders to leave out.

    Raises:
        TaskError: There are too few source files to hold some out.
    """
    folder = folder or Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, bytes]] = []
    total = 0
    for path in _sources(folder, exclude):
        if total >= max_bytes:
            break
        content = path.read_bytes()
        total += len(content)
        found.append((path.relative_to(folder).as_posix(), content))
    return _corpus(_dealt(found, HELD_OUT, "the standard library's source", str(folder), "files *.py"))


def load_manual(topics: Mapping[str, str] | None = None) -> Corpus:
    """The topics of Python's ``help()``: prose and grammar of the language reference, dealt to the parts.

    Topics repeat each other. Every paragraph is kept once: for validation where a topic of that part has it,
    else for probes, else for training.

    Args:
        topics: Texts by name; those of ``pydoc_data.topics`` if None.

    Raises:
        TaskError: There are too few topics to hold some out.
    """
    if topics is None:
        try:
            topics = import_module("pydoc_data.topics").topics
        except ImportError:
            topics = {}
    found = [(name, topics[name].encode()) for name in sorted(topics)]
    parts = _dealt(found, MANUAL_HELD_OUT, "the manual of Python's help()", "pydoc_data.topics", "topics")
    seen: set[bytes] = set()
    for part in ("validation", "probes", "training"):
        for position, (name, text) in enumerate(parts[part]):
            paragraphs = (p.strip(b"\n") for p in text.split(b"\n\n"))
            new = [p for p in dict.fromkeys(paragraphs) if p not in seen]
            seen.update(new)
            parts[part][position] = (name, b"\n\n".join(new))
    return _corpus(parts)


def _dealt(
    found: Sequence[tuple[str, bytes]], held_out: Mapping[int, str], what: str, where: str, kind: str
) -> _Parts:
    """Every tenth text to each held-out part, the others to training."""
    parts: _Parts = {"training": [], "probes": [], "validation": []}
    for index, text in enumerate(found):
        parts[held_out.get(index % 10, "training")].append(text)
    if not all(parts.values()):
        raise TaskError(
            f"{what} is not here",
            where=where,
            got=f"{len(found)} {kind}",
            expected=f"at least 10 {kind}",
            fix="use a Python installation that ships its library as source files",
        )
    return parts


def _corpus(parts: _Parts) -> Corpus:
    names = {part: tuple(name for name, _ in texts) for part, texts in parts.items()}
    return Corpus(_joined(parts["training"]), _joined(parts["probes"]), _joined(parts["validation"]), names)


def _joined(files: Sequence[tuple[str, bytes]]) -> NDArray[np.uint8]:
    return np.frombuffer(b"\n".join(content for _, content in files), np.uint8)
