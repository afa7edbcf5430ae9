"""The record of a run: one JSON object per line, written by an event listener (F46, F52, F77).

Every line carries ``event`` (a value of `hybridcore.events.Event`) and the event's payload; floats are
finite or null. `hybridcore.records.read_run` reads it back.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from hybridcore.errors import MetricsError
from hybridcore.events import Event

__all__ = ["SCHEMA", "MetricsWriter", "plain_json"]

logger = logging.getLogger("hybridcore")

SCHEMA = 1
"""Version of the record's format, written into its first line."""

_FLUSH_SECONDS = 1.0
_FLUSH_BYTES = 1 << 16
_MOST_BYTES = 1 << 26
_FREQUENT = frozenset({Event.REAL_STEP, Event.PREDICTED_STEP})


def _default(value: Any) -> Any:
    """Scalars of array libraries as Python numbers, everything else that is unknown as text."""
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


_encode = json.JSONEncoder(
    separators=(",", ":"), allow_nan=False, check_circular=False, default=_default
).encode


def plain_json(value: Any) -> Any:
    """`value` with non-finite floats as None and only types that JSON has.

    Example:
        >>> plain_json({"loss": float("nan"), "sizes": (1, 2)})
        {'loss': None, 'sizes': [1, 2]}
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(item) for item in value]
    return plain_json(_default(value))


class MetricsWriter:
    r"""Event listener that appends one line per event to a file.

    The folder and the file are made when the first event arrives. Lines reach the disk at the latest with
    the first event other than a step that comes a second after the last flush, with ``run-end``, and on
    `close`. While the disk is full they are kept in memory, 64 MiB at most, and tried again: a warning, and
    no line is lost if room is made.

    Args:
        path: The JSONL file; an existing one is replaced.
        step_every: Write a step's record only when its number is a multiple of this.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with MetricsWriter(Path(folder.name) / "run" / "metrics.jsonl") as writer:
        ...     writer(Event.PROBE, {"step": 3, "loss": float("inf")})
        >>> writer.path.read_text()
        '{"event":"probe","step":3,"loss":null}\n'
        >>> folder.cleanup()
    """

    def __init__(self, path: str | Path, *, step_every: int = 1) -> None:
        self.path = Path(path)
        self._position: int | None = None
        self._step_every = step_every
        self._file: FileIO | None = None
        self._held: list[bytes] = []
        self._size = self._lost = 0
        self._failing = False
        self._flushed = -math.inf
        self._closed = False

    def __call__(self, event: Event, payload: Mapping[str, Any]) -> None:
        """Write one record.

        Raises:
            MetricsError: The first one, if the file cannot be made.
            ValueError: The writer is closed.
        """
        frequent = event in _FREQUENT
        if frequent and payload.get("step", 0) % self._step_every:
            return
        record = {"event": event, **payload}
        for key, value in payload.items():
            if type(value) is float and value != value:  # far cheaper than an encoder that fails
                record[key] = None
        try:
            line = _encode(record)
        except ValueError:
            line = _encode(plain_json(record))
        file = self._file or self._open()
        if self._size > _MOST_BYTES:
            self._lost += 1
        else:
            self._held.append(line.encode() + b"\n")
            self._size += len(self._held[-1])
        full = self._size >= _FLUSH_BYTES and not self._failing
        late = not frequent and time.monotonic() - self._flushed >= _FLUSH_SECONDS
        if full or late or event is Event.RUN_END:
            self._flush(file)

    def _flush(self, file: FileIO) -> OSError | None:
        """Write what is held; what could not be written stays, and its error is given back."""
        self._flushed = time.monotonic()
        content, failed = b"".join(self._held), None
        try:
            while content:
                content = content[file.write(content) :]
        except OSError as error:
            failed = error
            if not self._failing:
                logger.warning(
                    "the record %s cannot be written (%s); it is kept in memory", self.path, error.strerror
                )
        self._failing = failed is not None
        self._held, self._size = [content] if content else [], len(content)
        return failed

    def _open(self) -> FileIO:
        if self._closed:
            raise ValueError(f"the metrics file {self.path} is closed")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._position is None:
                self._file = FileIO(self.path, "w")
            else:
                self._file = FileIO(self.path, "r+")
                self._file.truncate(self._position)
                self._file.seek(self._position)
        except OSError as error:
            raise MetricsError(
                f"the record of a run cannot be written: {error.strerror or error}",
                where=str(self.path),
                expected="a folder that can be written",
                fix="set run.directory, or give another folder",
            ) from error
        return self._file

    def go_on(self, position: int) -> None:
        """Go on with an existing file after this many bytes; what follows them is cut off.

        To be called before the first event.
        """
        self._position = position

    def sync(self) -> int:
        """Bring every line to the disk.

        Returns:
            Bytes of the file now.

        Raises:
            OSError: Not every line is there.
        """
        file = self._file or self._open()
        failed = self._flush(file)
        if failed is not None:
            raise failed
        if self._lost:
            raise OSError(errno.ENOSPC, f"{self._lost} lines of the record were lost", str(self.path))
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size

    def close(self) -> None:
        """Flush and close; later events are errors, closing again is not."""
        self._closed = True
        if self._file is not None:
            if self._flush(self._file) is not None or self._lost:
                lines = self._lost + sum(part.count(b"\n") for part in self._held)
                logger.warning("%d lines of the record %s are lost", lines, self.path)
            self._file.close()
            self._file = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
