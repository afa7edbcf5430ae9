"""Finds plugins and asks their hooks, one plugin at a time, so that every fault has an owner."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from importlib import metadata
from inspect import isroutine
from types import MappingProxyType
from typing import Any

import attrs
import pluggy

from hybridcore import hookspecs
from hybridcore.errors import HybridCoreError, PluginError
from hybridcore.hookspecs import HOOKS, PROJECT
from hybridcore.plugin_checks import check_class, did_you_mean

__all__ = ["BUILTIN", "Discovery", "PluginRecord", "Problem", "Provided", "discover"]

BUILTIN = "builtin"
"""Name of the plugin that hybridcore itself brings."""


@attrs.frozen
class PluginRecord:
    """What became of one plugin.

    Attributes:
        name: Name of its entry point.
        distribution: Distribution that brings it.
        version: Version of that distribution.
        module: Module, or object, that the entry point names.
        status: ``"loaded"``, ``"broken"`` (raised), ``"rejected"`` (registers something that hybridcore
            cannot use) or ``"blocked"`` (by the configuration; not imported).
        error: Why it is broken or rejected, or None.
        provides: Pairs of kind and registry name that it adds.
    """

    name: str
    distribution: str
    version: str
    module: str
    status: str
    error: str | None = None
    provides: tuple[tuple[str, str], ...] = ()

    @property
    def source(self) -> str:
        """Name, distribution and version in one phrase, for messages."""
        return f"plugin {self.name!r} of {self.distribution} {self.version}"


@attrs.frozen
class Problem:
    """A fault of one plugin.

    Attributes:
        plugin: Name of the plugin.
        error: What is wrong, ready to raise.
        always: Whether it stops a run even if nothing names the plugin: what a name means would be
            unclear (duplicate), or a part of the plugin would silently be missing (misspelt hook).
        names: Pairs of kind and registry name that are not available because of it.
        raised: Whether the plugin's own code raised; otherwise it registers something unusable.
    """

    plugin: str
    error: HybridCoreError
    always: bool = False
    names: tuple[tuple[str, str], ...] = ()
    raised: bool = False


@attrs.frozen
class Provided:
    """One registered class and the plugin that it came from."""

    cls: type[Any]
    record: PluginRecord


@attrs.frozen
class Discovery:
    """All plugins of this environment.

    Attributes:
        classes: Pair of kind and registry name to the class; of duplicates, the first found.
        records: One per plugin, the built-in one first.
        problems: In the order found.
    """

    classes: MappingProxyType[tuple[str, str], Provided]
    records: tuple[PluginRecord, ...]
    problems: tuple[Problem, ...]


def discover(block: Collection[str] = ()) -> Discovery:
    """Import every plugin that is not blocked and gather its classes; raises nothing for their faults.

    Args:
        block: Names of plugins that are not imported.
    """
    classes: dict[tuple[str, str], Provided] = {}
    records: list[PluginRecord] = []
    problems: list[Problem] = []
    for entry in _entries():
        record = _record(entry)
        if entry.name in block:
            records.append(attrs.evolve(record, status="blocked"))
            continue
        found, faults = _collect(entry, record)
        status = "broken" if any(f.raised for f in faults) else "rejected" if faults else "loaded"
        record = attrs.evolve(
            record,
            status=status,
            error="\n".join(str(f.error) for f in faults) or None,
            provides=tuple(found),
        )
        for key, cls in found.items():
            if key in classes and classes[key].cls is not cls:
                faults.append(_duplicate(key, classes[key], Provided(cls, record)))
            else:
                classes[key] = Provided(cls, record)
        records.append(record)
        problems += faults
    return Discovery(MappingProxyType(classes), tuple(records), tuple(problems))


def _entries() -> list[metadata.EntryPoint]:
    own = metadata.EntryPoint(BUILTIN, "hybridcore.builtin", PROJECT)
    found = sorted(metadata.entry_points(group=PROJECT), key=lambda e: (e.name, e.value))
    return [own, *found]


def _record(entry: metadata.EntryPoint) -> PluginRecord:
    if entry.dist is not None:
        return PluginRecord(entry.name, entry.dist.name, entry.dist.version, entry.value, "loaded")
    from hybridcore import __version__

    return PluginRecord(entry.name, PROJECT, __version__, entry.value, "loaded")


def _broken(record: PluginRecord, doing: str, error: Exception) -> Problem:
    wrapped = PluginError(
        f"a plugin fails {doing}: {type(error).__name__}: {error}",
        where=f"{record.source} ({record.module})",
        fix=f"pip install --upgrade {record.distribution}, or put {record.name!r} into plugins.block",
    )
    wrapped.__cause__ = error
    return Problem(record.name, wrapped, raised=True)


def _collect(
    entry: metadata.EntryPoint, record: PluginRecord
) -> tuple[dict[tuple[str, str], type[Any]], list[Problem]]:
    """Classes of one plugin by kind and name, and its faults."""
    found: dict[tuple[str, str], type[Any]] = {}
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        plugin = entry.load()
        manager.register(plugin, name=entry.name)
    except Exception as error:
        return found, [_broken(record, "to load", error)]
    faults = _misspelt(manager, plugin, record)
    for caller in manager.get_hookcallers(plugin) or []:
        if caller.name not in HOOKS:
            continue
        kind = HOOKS[caller.name]
        try:
            classes = [cls for impl in caller.get_hookimpls() for cls in _returned(impl)]
        except Exception as error:
            faults.append(_broken(record, f"in {caller.name}()", error))
            continue
        for cls in classes:
            try:
                check_class(kind, cls, record.source)
            except PluginError as error:
                name = getattr(cls, "name", None)
                lost = ((kind, name),) if isinstance(name, str) else ()
                faults.append(Problem(record.name, error, names=lost))
                continue
            except Exception as error:
                faults.append(_broken(record, f"when {cls!r} is looked at", error))
                continue
            key = (kind, cls.name)
            if found.get(key, cls) is not cls:
                own = Provided(found[key], record)
                faults.append(_duplicate(key, own, Provided(cls, record)))
                continue
            found[key] = cls
    return found, faults


def _returned(implementation: pluggy.HookImpl) -> Iterable[Any]:
    classes: Any = implementation.function()
    if not isinstance(classes, Iterable):
        raise TypeError(f"expected a list of classes, got {classes!r}")
    return classes


def _misspelt(manager: pluggy.PluginManager, plugin: Any, record: PluginRecord) -> list[Problem]:
    """Faults for marked functions that are no hook, and for hook-like functions without a mark."""
    marked = {caller.name for caller in manager.get_hookcallers(plugin) or []}
    unmarked = {
        name
        for name in dir(plugin)
        if name not in marked and isroutine(getattr(plugin, name)) and get_close_matches(name, HOOKS, 1, 0.85)
    }
    faults = []
    for name in sorted(marked - set(HOOKS)) + sorted(unmarked):
        unmarked_hook = name in HOOKS
        what = "has a hook without @hookimpl" if unmarked_hook else "misspells a hook"
        fix = (
            "decorate it: from hybridcore import hookimpl"
            if unmarked_hook
            else did_you_mean(name, HOOKS, "remove it, or upgrade hybridcore")
        )
        error = PluginError(
            f"a plugin {what}", where=record.source, got=f"{name}()", expected=", ".join(HOOKS), fix=fix
        )
        faults.append(Problem(record.name, error, always=True))
    return faults


def _duplicate(key: tuple[str, str], first: Provided, second: Provided) -> Problem:
    kind, name = key
    error = PluginError(
        f"two plugins register the same {kind} {name!r}",
        where=f"{first.record.source} and {second.record.source}",
        got=" and ".join(f"{p.cls.__module__}.{p.cls.__qualname__}" for p in (first, second)),
        expected=f"one {kind} per registry name",
        fix=f"pip uninstall {second.record.distribution}, or put {second.record.name!r} into plugins.block",
    )
    return Problem(second.record.name, error, always=True)
