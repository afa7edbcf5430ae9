"""The registry of predictors, controllers, correctors, monitors, tasks and trackers, built-in or third-party.

Third-party code is imported when `load_registry` is called, never by ``import hybridcore``, and installing
a plugin never changes a run: only what the configuration names is used.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from hybridcore.discovery import BUILTIN, Discovery, PluginRecord, Problem, discover
from hybridcore.errors import PluginError
from hybridcore.frameworks import FrameworkEntry, detect_framework, list_frameworks, load_framework
from hybridcore.plugin_checks import PROTOCOLS, did_you_mean

__all__ = [
    "FrameworkEntry",
    "PluginRecord",
    "Registry",
    "detect_framework",
    "list_frameworks",
    "load_framework",
    "load_registry",
]

logger = logging.getLogger("hybridcore")


@attrs.frozen
class Registry:
    """Classes by registry name.

    Attributes:
        predictors: Registry name to predictor class.
        controllers: Registry name to controller class.
        correctors: Registry name to corrector class.
        dynamics: Registry name to dynamics model class.
        monitors: Registry name to monitor class.
        tasks: Registry name to task class.
        trackers: Registry name to tracker class.
        kernels: Registry name to kernel set class.
        records: What became of each plugin, the built-in one first.

    Example:
        >>> registry = load_registry()
        >>> registry.get("predictor", "last-update").name
        'last-update'
    """

    predictors: Mapping[str, type[Any]]
    controllers: Mapping[str, type[Any]]
    correctors: Mapping[str, type[Any]]
    dynamics: Mapping[str, type[Any]]
    monitors: Mapping[str, type[Any]]
    tasks: Mapping[str, type[Any]]
    trackers: Mapping[str, type[Any]]
    kernels: Mapping[str, type[Any]]
    records: tuple[PluginRecord, ...]
    _problems: tuple[Problem, ...] = ()

    @classmethod
    def from_discovery(cls, found: Discovery) -> Registry:
        """Registry of what was discovered, whatever its faults."""
        tables = {
            kind: MappingProxyType({n: p.cls for (k, n), p in found.classes.items() if k == kind})
            for kind in PROTOCOLS
        }
        return cls(
            tables["predictor"],
            tables["controller"],
            tables["corrector"],
            tables["dynamics"],
            tables["monitor"],
            tables["task"],
            tables["tracker"],
            tables["kernel"],
            found.records,
            found.problems,
        )

    def names(self, kind: str) -> tuple[str, ...]:
        """Registry names of a kind, sorted.

        Args:
            kind: ``"predictor"``, ``"controller"``, ``"corrector"``, ``"dynamics"``, ``"monitor"``,
                ``"task"``, ``"tracker"`` or ``"kernel"``.

        Raises:
            PluginError: There is no such kind.
        """
        return tuple(sorted(self._table(kind)))

    def get(self, kind: str, name: str) -> type[Any]:
        """Class of a kind by its registry name.

        Args:
            kind: ``"predictor"``, ``"controller"``, ``"corrector"``, ``"dynamics"``, ``"monitor"``,
                ``"task"``, ``"tracker"`` or ``"kernel"``.
            name: Registry name.

        Raises:
            ApiVersionError: A plugin registers it, for another version of the protocols.
            PluginError: It is unknown, or a plugin registers it with a fault.
        """
        table = self._table(kind)
        if name in table:
            return table[name]
        for problem in self._problems:
            if (kind, name) in problem.names:
                raise problem.error
        unusable = [r for r in self.records if r.status in {"broken", "blocked"}]
        otherwise = "`hybridcore plugins list` shows all; install the distribution that brings it"
        if unusable:
            otherwise += f"; not loaded: {', '.join(f'{r.name} ({r.status})' for r in unusable)}"
        raise PluginError(
            f"unknown {kind}",
            where=f"{kind}.name",
            got=repr(name),
            expected=f"one of {', '.join(self.names(kind)) or 'none installed'}",
            fix=did_you_mean(name, table, otherwise),
        )

    def _table(self, kind: str) -> Mapping[str, type[Any]]:
        if kind not in PROTOCOLS:
            raise PluginError(
                "unknown kind of plugin",
                where="Registry",
                got=repr(kind),
                expected=f"one of {', '.join(PROTOCOLS)}",
                fix=did_you_mean(kind, PROTOCOLS, "use one of these kinds"),
            )
        table: Mapping[str, type[Any]] = getattr(self, kind if kind == "dynamics" else f"{kind}s")
        return table


def load_registry(load: Iterable[str] = (), block: Collection[str] = ()) -> Registry:
    """Import all plugins and register their classes.

    A plugin that raises, or registers a class that hybridcore cannot use, is logged as a warning and
    recorded, unless `load` names it. Duplicate registry names and misspelt hooks are always errors.

    Args:
        load: Names of plugins (entry points of the group ``hybridcore``) that must load.
        block: Names of plugins that must not be imported.

    Raises:
        ApiVersionError: A plugin named in `load` was written for another version of the protocols.
        PluginError: A plugin named in `load` is missing, blocked, broken or rejected; or any plugin
            misspells a hook or registers a name that is taken.
    """
    load = tuple(load)
    found = discover(block)
    for name in load:
        _demand(name, found.records)
    for problem in found.problems:
        if problem.always or problem.plugin in load or problem.plugin == BUILTIN:
            raise problem.error
        logger.warning("plugin %r is not used in full:\n%s", problem.plugin, problem.error)
    return Registry.from_discovery(found)


def _demand(name: str, records: tuple[PluginRecord, ...]) -> None:
    """Raise unless a plugin of this name is installed and not blocked."""
    known = [r.name for r in records]
    if name not in known:
        raise PluginError(
            "a plugin that the configuration demands is not installed",
            where="plugins.load",
            got=repr(name),
            expected=f"one of {', '.join(known)}",
            fix=did_you_mean(name, known, "install the distribution that brings it"),
        )
    if any(r.name == name and r.status == "blocked" for r in records):
        raise PluginError(
            "a plugin is both demanded and blocked",
            where="plugins.load and plugins.block",
            got=repr(name),
            expected="a name in one of the two at most",
            fix=f"remove {name!r} from one of the two lists",
        )
