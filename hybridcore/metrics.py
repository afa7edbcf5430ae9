"""The record of a run: one JSON object per line, written by an event listener (F46, F52, F77).

Every line carries ``event`` (a value of `hybridcore.events.Event`) and the event's payload; floats are
finite or null. `hybridcore.records.read_run` reads it back.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

from hybridcore.events import Event

__all__ = ["SCHEMA", "MetricsWriter", "plain_json"]

SCHEMA = 1
"""Version of the record's format, written into its first line."""

_FLUSH_SECONDS = 1.0
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
    the first event other than a step that comes a second after the last flush, and on `close`.

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
        self._file: TextIOWrapper | None = None
        self._flushed = -math.inf
        self._closed = False

    def __call__(self, event: Event, payload: Mapping[str, Any]) -> None:
        """Write one record."""
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
        file.write(line + "\n")
        if not frequent and (now := time.monotonic()) - self._flushed >= _FLUSH_SECONDS:
            file.flush()
            self._flushed = now

    def _open(self) -> TextIOWrapper:
        if self._closed:
            raise ValueError(f"the metrics file {self.path} is closed")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._position is None:
            self._file = self.path.open("w", encoding="utf-8", buffering=1 << 16)
        else:
            self._file = self.path.open("r+", encoding="utf-8", buffering=1 << 16)
            self._file.truncate(self._position)
            self._file.seek(self._position)
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
        """
        file = self._file or self._open()
        file.flush()
        self._flushed = time.monotonic()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size

    def close(self) -> None:
        """Flush and close; later events are errors, closing again is not."""
        self._closed = True
        if self._file is not None:
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
