"""What a checkpoint says of itself: version, position, whose it is, and the checksums of its files."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import attrs

from hybridcore import __version__
from hybridcore.errors import CheckpointError

__all__ = ["FORMAT", "FileEntry", "Manifest"]

FORMAT = 1
"""Version of the format on disk."""

_LONGEST = 1 << 20
_FILES = ("arrays.safetensors", "state.json")


@attrs.frozen
class FileEntry:
    """One file of a checkpoint.

    Attributes:
        nbytes: Its size.
        sha256: Its checksum, hexadecimal.
    """

    nbytes: int
    sha256: str


@attrs.frozen
class Manifest:
    """The file ``manifest.json``.

    Attributes:
        step: Real steps of the run so far.
        batches: Batches consumed so far.
        files: The other files by name; always the same two names, so that no name leads elsewhere.
        belongs_to: What the run that goes on must share: model, task, configuration.
        version: Version of hybridcore that wrote it.

    Example:
        >>> entry = FileEntry(0, hashlib.sha256(b"").hexdigest())
        >>> files = {"arrays.safetensors": entry, "state.json": entry}
        >>> manifest = Manifest(3, 4, files, {"arm": "hybrid"}, "0.1.0")
        >>> Manifest.parse(manifest.dump(), "here") == manifest
        True
    """

    step: int
    batches: int
    files: dict[str, FileEntry]
    belongs_to: dict[str, Any]
    version: str

    def dump(self) -> bytes:
        """The file's content; its last key is a checksum of all others."""
        content = {"format": FORMAT, **attrs.asdict(self)}
        return (json.dumps({**content, "sha256": _checksum(content)}, indent=1) + "\n").encode()

    @classmethod
    def parse(cls, text: bytes, where: str, names: re.Pattern[str] | None = None) -> Manifest:
        """Read a file's content.

        Args:
            text: The content.
            where: The file, for errors.
            names: Pattern of the files' names where they are not the usual two; it must let no name lead
                elsewhere.

        Raises:
            CheckpointError: It is damaged, or of a newer format.
        """
        content = parse_json(text, where) if len(text) <= _LONGEST else None
        if not isinstance(content, dict) or "format" not in content:
            raise _damaged(where, f"{len(text)} bytes", "a manifest of a checkpoint")
        if content["format"] != FORMAT:
            raise CheckpointError(
                "a checkpoint is of another format",
                where=where,
                got=f"format {content['format']!r:.40}, of hybridcore {content.get('version')!s:.40}",
                expected=f"format {FORMAT}, which hybridcore {__version__} reads",
                fix="pip install --upgrade hybridcore, or use an older checkpoint",
            )
        found = content.pop("sha256", None)
        if found != _checksum(content):
            raise _damaged(where, repr(found)[:80], _checksum(content))
        try:
            known = names.fullmatch if names is not None else _FILES.__contains__
            if (
                not content["files"]
                or not all(map(known, content["files"]))
                or (names is None and len(content["files"]) != len(_FILES))
            ):
                raise _damaged(where, sorted(content["files"]), f"the files {' and '.join(_FILES)}")
            files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
            numbers = [content["step"], content["batches"], *(entry.nbytes for entry in files.values())]
            if not all(type(n) is int and n >= 0 for n in numbers):
                raise _damaged(where, numbers, "sizes and positions from 0")
            if not all(type(entry.sha256) is str for entry in files.values()):
                raise _damaged(where, content["files"], "checksums")
            if not isinstance(content["belongs_to"], dict):
                raise _damaged(where, content["belongs_to"], "a table")
            return cls(numbers[0], numbers[1], files, content["belongs_to"], str(content["version"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(where, f"{type(error).__name__}: {error}", "a manifest") from error


def parse_json(text: bytes, where: str) -> Any:
    """Strict JSON: no NaN, no nesting that exhausts the stack.

    Raises:
        CheckpointError: It is no such JSON.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"{type(error).__name__}: {error}"[:200], "JSON") from error


def _checksum(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _damaged(where: str, got: object, expected: str) -> CheckpointError:
    return CheckpointError(
        "a checkpoint is damaged", where=where, got=got, expected=expected, fix="use an older checkpoint"
    )
