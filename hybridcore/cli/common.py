"""What commands share: consoles, reading a configuration, logging, where runs go."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from hybridcore.components import check_config
from hybridcore.config import HybridConfig
from hybridcore.configfile import apply_overrides, preset_data, preset_names, read_data
from hybridcore.errors import CheckpointError, HybridCoreError

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = [
    "errors",
    "latest_run",
    "output",
    "print_error",
    "read_config",
    "read_source",
    "run_folder",
    "say_interrupted",
    "set_up_logging",
    "source_data",
]


def output() -> Console:
    """Console for results; off a terminal it is wide enough that no table folds."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def errors() -> Console:
    """Console for errors, warnings and progress."""
    return Console(stderr=True)


def print_error(error: HybridCoreError) -> None:
    """Print an error without a traceback, its first line in red."""
    first, newline, rest = str(error).partition("\n")
    errors().print(Text.assemble((f"error: {first}", "bold red"), newline + rest), soft_wrap=True)


def say_interrupted(done: int, planned: int, how: str) -> None:
    """Tell that the user stopped something of many runs, and how it goes on."""
    text = f"interrupted: {done} of {planned} runs are finished; {how}"
    errors().print(text, markup=False, highlight=False, soft_wrap=True)


def source_data(source: str) -> dict[str, Any]:
    """Plain data of a TOML file or, where no such file exists, of the preset of that name."""
    if source in preset_names() and not Path(source).exists():
        return preset_data(source)
    return read_data(source)


def read_config(
    source: str | None, overrides: Iterable[str] = (), framework: str | None = None, trace: bool = False
) -> tuple[HybridConfig, Registry]:
    """A checked configuration and the registry it was checked against.

    Args:
        source: A TOML file, or the name of a preset or of a task; the defaults if None.
        overrides: Settings ``dotted.key=value``.
        framework: Replaces ``run.framework``.
        trace: Sets ``metrics.trace``.

    Raises:
        HybridCoreError: The configuration has mistakes, or a plugin that it demands does not load.
    """
    data, registry = read_source(source, overrides, framework, trace)
    return check_config(data, registry, origin=source or "defaults"), registry


def read_source(
    source: str | None, overrides: Iterable[str] = (), framework: str | None = None, trace: bool = False
) -> tuple[dict[str, Any], Registry]:
    """Like `read_config`, but plain data that has not been checked.

    Raises:
        HybridCoreError: The file or an override cannot be read, or a demanded plugin does not load.
    """
    from hybridcore.plugins import load_registry

    settings = list(overrides)
    if framework is not None:
        settings.append(f"run.framework={framework}")
    if trace:
        settings.append("metrics.trace=true")
    plain = _task_data(source) or ({} if source is None else source_data(source))
    data = apply_overrides(plain, settings)
    return data, load_registry(_plugin_names(data, "load"), _plugin_names(data, "block"))


def _task_data(source: str | None) -> dict[str, Any] | None:
    """The defaults for a task, where `source` is the name of one and of no file or preset."""
    from hybridcore.plugins import load_registry

    if source is None or source in preset_names() or Path(source).suffix or Path(source).exists():
        return None
    return {"task": {"name": source}} if source in load_registry().tasks else None


def _plugin_names(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of ``[plugins]`` as far as it is well-formed; the check reports the rest."""
    table = data.get("plugins")
    names = table.get(key) if isinstance(table, Mapping) else None
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def run_folder(config: HybridConfig, kind: str, out: Path | None) -> Path:
    """Where a run's files go: `out`, or a new sub-folder of ``run.directory``."""
    if out is not None:
        return out
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    return Path(config.run.directory) / f"{_prefix(config, kind)}{stamp}"


def latest_run(config: HybridConfig, kind: str, option: str = "") -> Path:
    """The newest folder that `run_folder` has named for this task and kind.

    Args:
        config: Names the task and the folder of its runs.
        kind: The arm, or the command.
        option: Option that names the folder, where ``--resume`` itself does not.

    Raises:
        CheckpointError: There is none.
    """
    prefix, parent = _prefix(config, kind), Path(config.run.directory)
    pattern = re.compile(re.escape(prefix) + r"\d{8}-\d{6}-\d{3}")
    found = [p for p in parent.iterdir() if pattern.fullmatch(p.name)] if parent.is_dir() else []
    if not found:
        raise CheckpointError(
            "there is no run to go on with",
            where=str(parent),
            expected=f"a folder {prefix}<date>",
            fix=f"name the folder of the run: {' '.join(['--resume', *option.split(), 'DIR'])}",
        )
    return max(found, key=lambda path: path.name)


def _prefix(config: HybridConfig, kind: str) -> str:
    task = config.task.name.replace(":", "-").replace("/", "-")
    return f"{task}-{kind}-"


def set_up_logging(trace: bool) -> None:
    """Send hybridcore's log to standard error: warnings, or every decision with its reason."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("hybridcore")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if trace else logging.WARNING)
