"""`hybridcore plugins`: what is installed, what one class offers, whether all of it is sound."""

from __future__ import annotations

import inspect
import sys
from typing import Any, TextIO

import attrs
from cyclopts import App
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybridcore.discovery import Discovery, discover
from hybridcore.errors import HybridCoreError, PluginError
from hybridcore.frameworks import FrameworkEntry, list_frameworks, load_framework
from hybridcore.plugin_checks import did_you_mean

__all__ = ["app", "check", "list_", "show"]

app = App(name="plugins", help="List, show and check installed plugins.")

_STYLES = {"loaded": "green", "broken": "red", "rejected": "red", "blocked": "yellow"}


def _console(file: TextIO | None = None) -> Console:
    """A console that never folds a table where nobody looks at a terminal."""
    console = Console(file=file or sys.stdout)
    return console if console.is_terminal else Console(file=file or sys.stdout, width=200)


@app.command(name="list")
def list_() -> None:
    """List predictors, controllers, correctors, tasks, trackers, kernels and frameworks with their origin."""
    found = discover()
    table = Table(box=None, pad_edge=False)
    for title in ("name", "kind", "distribution", "version", "status"):
        table.add_column(title, no_wrap=True)
    for (kind, name), provided in sorted(found.classes.items()):
        record = provided.record
        table.add_row(name, kind, record.distribution, record.version, Text("loaded", "green"))
    for entry in list_frameworks():
        table.add_row(entry.name, "framework", entry.distribution, entry.version, "installed")
    for record in found.records:
        if record.status != "loaded":
            status = Text(record.status, _STYLES[record.status])
            table.add_row(record.name, "plugin", record.distribution, record.version, status)
    _console().print(table)
    errors = _console(sys.stderr)
    for problem in found.problems:
        errors.print(Text(str(problem.error), "yellow"))


@app.command
def show(name: str) -> None:
    """Show what a class does and its configuration keys with types and defaults.

    Parameters
    ----------
    name
        Registry name, such as last-update.
    """
    found = discover()
    kinds = [kind for kind, known in found.classes if known == name]
    if not kinds:
        known = sorted({n for _, n in found.classes})
        raise PluginError(
            "no plugin registers this name",
            where="hybridcore plugins show",
            got=repr(name),
            expected=f"one of {', '.join(known)}",
            fix=did_you_mean(name, known, "`hybridcore plugins list` shows all names"),
        )
    console = _console()
    for kind in kinds:
        provided = found.classes[kind, name]
        record = provided.record
        console.print(
            Text(f"{name} ({kind})", "bold"), Text(f"{record.distribution} {record.version}", "dim")
        )
        console.print(Text(inspect.getdoc(provided.cls) or "No description."))
        console.print(_keys(kind, name, provided.cls))


def _keys(kind: str, name: str, cls: type[Any]) -> Table | Text:
    config = getattr(cls, "Config", None)
    if config is None:
        return Text("No configuration keys.")
    homes = {"task": "[task]", "tracker": f"[trackers.{name}]", "corrector": f"[correction.{name}]"}
    heading = homes.get(kind, f"[{kind}.{name}]")
    table = Table(box=None, pad_edge=False, title=Text(heading), title_justify="left")
    for title in ("key", "type", "default"):
        table.add_column(title, no_wrap=True)
    for field in attrs.fields(attrs.resolve_types(config)):
        kind_of_value = getattr(field.type, "__name__", None) if isinstance(field.type, type) else None
        table.add_row(field.name, kind_of_value or str(field.type), Text(_default(field)))
    return table


def _default(field: Any) -> str:
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
        return f"{field.default.factory.__name__}()"
    return repr(field.default)


@app.command
def check(name: str | None = None) -> None:
    """Load plugins and adapters strictly; exit with 1 and say why if one is not sound.

    Parameters
    ----------
    name
        Only this plugin, framework or registry name; all without it.
    """
    found, frameworks = discover(), list_frameworks()
    plugins = _selected(found, frameworks, name)
    errors = [p.error for p in found.problems if p.plugin in plugins]
    chosen = [f for f in frameworks if name in {None, f.name, f.distribution}]
    for entry in chosen:
        try:
            load_framework(entry.name)
        except HybridCoreError as error:
            errors.append(error)
    report = _console(sys.stderr)
    for fault in errors:
        report.print(Text(str(fault), "red"))
    if errors:
        raise SystemExit(1)
    classes = sum(len(r.provides) for r in found.records if r.name in plugins)
    _console().print(f"{len(plugins)} plugins, {classes} classes, {len(chosen)} adapters: all sound")


def _selected(found: Discovery, frameworks: tuple[FrameworkEntry, ...], name: str | None) -> set[str]:
    """Names of the plugins that a check of `name` is about."""
    chosen = {
        r.name
        for r in found.records
        if name in {None, r.name, r.distribution} or name in {registered for _, registered in r.provides}
    }
    chosen |= {p.plugin for p in found.problems if name in {lost for _, lost in p.names}}
    if chosen or any(name in {f.name, f.distribution} for f in frameworks):
        return chosen
    known = [*(r.name for r in found.records), *(f.name for f in frameworks), *(n for _, n in found.classes)]
    raise PluginError(
        "there is nothing of this name to check",
        where="hybridcore plugins check",
        got=repr(name),
        expected=f"one of {', '.join(dict.fromkeys(known))}",
        fix=did_you_mean(name or "", known, "`hybridcore plugins list` shows all names"),
    )
