"""`hybridcore report`: tables and figures of recorded runs."""

from __future__ import annotations

from pathlib import Path

from hybridcore.cli.common import errors, output
from hybridcore.cli.sweep import sweep_table
from hybridcore.compare import Comparison, read_comparison
from hybridcore.errors import PluginError
from hybridcore.report.data import save_data
from hybridcore.report.figure import save_figure
from hybridcore.report.overhead import overheads
from hybridcore.report.page import save_page
from hybridcore.report.sweep_figure import save_sweep_figure
from hybridcore.report.sweep_page import save_sweep_page
from hybridcore.report.table import comparison_table, narrow_tables, overhead_table
from hybridcore.sweep_results import Sweep, read_sweep

_UNLIMITED = 10_000

__all__ = ["report", "show_tables", "write_report"]


def report(directory: Path, /, *, out: Path | None = None) -> int:
    """Show the table of a comparison, a sweep or a single run, and write report.png and report.html.

    Args:
        directory: Folder that `hybridcore compare`, `hybridcore sweep` or `hybridcore run` has written.
        out: Folder for the report; the runs' own by default. That of runs has a report.json too.
    """
    if (directory / "sweep.json").exists():
        return _sweep(read_sweep(directory), out or directory)
    comparison = read_comparison(directory)
    show_tables(comparison)
    folder = out or directory
    save_figure(comparison, folder / "report.png")
    save_page(comparison, folder / "report.html")
    save_data(comparison, folder / "report.json")
    output().print(f"report in {folder}", highlight=False, soft_wrap=True)
    return 0


def _sweep(result: Sweep, folder: Path) -> int:
    output().print(sweep_table(result))
    save_sweep_figure(result, folder / "report.png")
    save_sweep_page(result, folder / "report.html")
    output().print(f"report in {folder}", highlight=False, soft_wrap=True)
    return 0


def show_tables(comparison: Comparison) -> None:
    """Print the arms and, where the engine ran, what it cost; on a narrow terminal in more tables."""
    console = output()
    whole = comparison_table(comparison)
    needed = console.measure(whole, options=console.options.update(width=_UNLIMITED)).maximum
    for table in (whole,) if needed <= console.width else narrow_tables(comparison):
        console.print(table)
    if found := overheads(comparison):
        console.print(overhead_table(found))


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write the figures where matplotlib is installed; say how to get them where it is not."""
    try:
        save_figure(comparison, folder / "report.png")
        save_page(comparison, folder / "report.html")
        save_data(comparison, folder / "report.json")
    except PluginError as error:
        errors().print(f"no figures: {error.fix}", markup=False, soft_wrap=True)
    output().print(f"recorded in {folder}", highlight=False, soft_wrap=True)
