"""Whether a checkpoint belongs to the run that wants to go on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from hybridcore.config import HybridConfig
from hybridcore.configfile import config_to_dict
from hybridcore.errors import CheckpointError
from hybridcore.layout import ParamLayout
from hybridcore.metrics import plain_json
from hybridcore.protocols import Adapter

__all__ = ["belongs_to", "require_same"]

_FREE = ("checkpoint", "metrics", "plugins", "trackers")
"""Tables that may change between two parts of a run: no weight depends on them."""


def belongs_to(config: HybridConfig, arm: str, adapter: Adapter) -> dict[str, Any]:
    """What a checkpoint and the run that goes on must share, as plain data."""
    tables = {name: table for name, table in config_to_dict(config).items() if name not in _FREE}
    tables["run"] = {key: value for key, value in tables["run"].items() if key != "directory"}
    return {
        "arm": arm,
        "adapter": adapter.name,
        "model": _fingerprint(adapter.layout),
        "parameters": adapter.layout.total,
        "config": plain_json(tables),
    }


def _fingerprint(layout: ParamLayout) -> str:
    lines = [f"{p.name} {p.shape} {p.dtype}" for p in layout.params]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def require_same(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Refuse the checkpoint of another run.

    Raises:
        CheckpointError: Something differs; the first differences are named by their dotted keys.

    Example:
        >>> require_same({"config": {"run": {"seed": 0}}}, {"config": {"run": {"seed": 1}}}, "here")
        Traceback (most recent call last):
        hybridcore.errors.CheckpointError: a checkpoint belongs to another run
          where: here
          got: config.run.seed = 0
          expected: config.run.seed = 1
          fix: resume with the configuration and the model of that run, or begin a new one
    """
    one, other = dict(_flat(found)), dict(_flat(wanted))
    differ = [key for key in {**other, **one} if one.get(key) != other.get(key)]
    if differ:
        raise CheckpointError(
            "a checkpoint belongs to another run",
            where=where,
            got=", ".join(f"{key} = {str(one.get(key))[:60]}" for key in differ[:4]),
            expected=", ".join(f"{key} = {str(other.get(key))[:60]}" for key in differ[:4]),
            fix="resume with the configuration and the model of that run, or begin a new one",
        )


def _flat(table: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value and depth < 10:
            yield from _flat(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value
