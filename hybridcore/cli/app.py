"""The commands by name; nothing of theirs is imported until one is called."""

from __future__ import annotations

from cyclopts import App

from hybridcore import __version__

__all__ = ["app"]

app = App(
    name="hybridcore",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `execute` says something about it
    help="Train with fewer backward passes: real steps, predicted weight changes, delayed verdicts.",
)
app.command("hybridcore.cli.run:run", name="run", help="Train one task and record it.")
app.command(
    "hybridcore.cli.compare:compare", name="compare", help="Train baseline, hybrid and controls, paired."
)
app.command(
    "hybridcore.cli.compare_runs:compare_runs", name="compare-runs", help="Put recorded runs side by side."
)
app.command("hybridcore.cli.sweep:sweep", name="sweep", help="Train every combination of some settings.")
app.command("hybridcore.cli.report:report", name="report", help="Tables and figures of recorded runs.")
app.command(
    "hybridcore.cli.checkpoints:app",
    name="checkpoints",
    help="List, verify and prune the checkpoints of a run.",
)
app.command("hybridcore.cli.config:app", name="config", help="Write, check and show configurations.")
app.command("hybridcore.cli.plugins:app", name="plugins", help="List, show and check installed plugins.")
app.command("hybridcore.cli.doctor:doctor", name="doctor", help="Versions, devices and what is missing.")
