"""The files of one run beside its metrics, and the facts that they begin with."""

from __future__ import annotations

import json
import os
import platform
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hybridcore import __version__
from hybridcore.config import HybridConfig
from hybridcore.configfile import config_to_dict, dump_config, read_data
from hybridcore.errors import AdapterNotFoundError, MetricsError
from hybridcore.metrics import SCHEMA, plain_json
from hybridcore.protocols import TaskRun

__all__ = ["finished", "require_same", "require_unused", "run_start", "write_config", "write_json"]


def require_unused(folder: Path) -> None:
    """Make sure that no earlier run is overwritten or mixed in.

    Raises:
        MetricsError: The folder, or one below it, holds a run already.
    """
    used = next(folder.rglob("metrics.jsonl"), None) if folder.is_dir() else None
    if used is not None:
        raise MetricsError(
            "the folder holds a run already",
            where=str(folder),
            got=str(used),
            expected="a new or empty folder",
            fix="name another folder, or remove the old runs",
        )


def finished(place: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    try:
        summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return not summary.get("interrupted", True)


def require_same(config: HybridConfig, place: Path) -> None:
    """Make sure that a run that is to be kept was trained with this configuration.

    Where it is written and what is logged may differ.

    Raises:
        MetricsError: It was trained with another one.
    """
    if _settings(tomllib.loads(dump_config(config))) != _settings(read_data(place / "config.toml")):
        raise MetricsError(
            "the folder holds a run of another configuration",
            where=str(place),
            got="another config.toml",
            expected="the configuration that the comparison was begun with",
            fix="name another folder, or go on with the old configuration",
        )


def _settings(table: dict[str, Any]) -> dict[str, Any]:
    """What decides how a run goes."""
    table.get("run", {}).pop("directory", None)
    table.get("metrics", {}).pop("trace", None)
    return table


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data so that a reader sees the old file or the whole new one.

    Raises:
        MetricsError: It cannot be written; no half file is left.
    """
    text = json.dumps(plain_json(data), indent=2, allow_nan=False) + "\n"
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)  # noqa: PTH105 - Path.replace is the same call
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise _unwritable(path, error) from error


def write_config(path: Path, config: HybridConfig) -> None:
    """Write the whole configuration of a run as TOML.

    Raises:
        MetricsError: It cannot be written.
    """
    try:
        path.write_text(dump_config(config), encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> MetricsError:
    """The error of a file of a run that cannot be written."""
    return MetricsError(
        f"a file of a run cannot be written: {error.strerror or error}",
        where=str(path),
        expected="a folder that can be written, and room on its disk",
        fix="free room, or name another folder",
    )


def run_start(config: HybridConfig, arm: str, task: TaskRun) -> dict[str, Any]:
    """What ``run-start`` holds: all that the run was begun with."""
    return {
        "schema": SCHEMA,
        "task": config.task.name,
        "framework": config.run.framework,
        "seed": config.run.seed,
        "arm": arm,
        "parameters": task.adapter.layout.total,
        "config": config_to_dict(config),
        "versions": _versions(config.run.framework),
        "device": task.adapter.device,
        "machine": f"{platform.machine()}, {platform.system()}, {_processors()} processors",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processors() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only some systems tell
        return os.cpu_count() or 1


def _versions(framework: str) -> dict[str, str]:
    from hybridcore.plugins import load_framework

    versions = {"python": platform.python_version(), "hybridcore": __version__}
    try:
        return versions | load_framework(framework).versions()
    except AdapterNotFoundError:
        return versions  # a task by module:function may bring an adapter of its own
