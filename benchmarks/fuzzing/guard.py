"""Watches one reading of one input: what it may raise, touch, import, and how long it may take."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybridcore.errors import HybridCoreError

__all__ = ["FindingError", "Guard", "limit_memory"]

SECONDS = 3.0
"""Processor time per input; real time would find nothing but a busy machine."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = (
    "code.__new__", "compile", "ctypes.", "exec", "ftplib.", "import", "marshal.", "os.chdir", "os.chmod",
    "os.chown", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn", "os.putenv",
    "os.remove",
    "os.rename", "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate", "os.utime", "pickle.",
    "shutil.", "socket.", "subprocess.", "tempfile.", "urllib.", "webbrowser.",
)  # fmt: skip


_HOOKED: list[bool] = []
_watching: list[Guard] = []
"""The guard at work, if any; audit hooks cannot be removed, so that there is one for all guards."""


class FindingError(BaseException):
    """Something that reading an input must never do; no `except Exception` swallows it."""


class Guard:
    """Runs readers under watch.

    Args:
        folder: The only place that may be read; nothing may be written.
        seconds: Processor time per input.
    """

    def __init__(self, folder: Path, seconds: float = SECONDS) -> None:
        self._folder, self._seconds = os.path.realpath(folder), seconds
        self._active = False
        if not _HOOKED:
            sys.addaudithook(lambda *event: _watching[0].hook(*event) if _watching else None)
            _HOOKED.append(True)

    def run(self, read: Callable[[], Any]) -> bool:
        """Whether the input was accepted; a `HybridCoreError` is the right way to refuse it.

        Raises:
            FindingError: Anything else.
        """
        before = sorted(os.listdir(self._folder))  # noqa: PTH208 - ten thousand times a second
        signal.signal(signal.SIGVTALRM, self._late)
        self._active = True
        _watching.append(self)
        signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds)
        try:
            read()
            accepted = True
        except HybridCoreError as error:
            str(error)  # its message must not fail either
            accepted = False
        except (FindingError, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._active = False
            raise FindingError(_place(error)) from error
        finally:
            self._active = False
            _watching.clear()
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        if sorted(os.listdir(self._folder)) != before:  # noqa: PTH208
            raise FindingError(f"files came or went: {before}")
        return accepted

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Judge an audit event."""
        if not self._active:
            return
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int):
                return
            writes = any(c in "wax+" for c in mode or "") or (flags or 0) & _WRITES
            inside = os.path.realpath(os.fsdecode(path)).startswith(self._folder + os.sep)
            if writes or not inside:
                self._found(f"open {os.fsdecode(path)!r}, mode {mode!r}")
        elif event.startswith(_FORBIDDEN):
            self._found(f"{event} {arguments!r:.200}")

    def _late(self, *_: object) -> None:
        if self._active:
            self._found(f"more than {self._seconds} seconds")

    def _found(self, what: str) -> None:
        self._active = False
        raise FindingError(what)


def _place(error: BaseException) -> str:
    """The error and the innermost line of the project that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "hybridcore" in f.filename.replace("hybridcore/benchmarks", "")]
    last = (own or frames)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {str(error)[:200]}"


def limit_memory(more: int = 1 << 30) -> None:
    """Let this process grow by so many bytes and no more; an input that asks for more is a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.getrlimit(resource.RLIMIT_AS)[1]))
