"""`hybridcore config`: write, check and show configurations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from hybridcore.cli.common import output, read_config
from hybridcore.configdocs import describe_config
from hybridcore.configfile import load_preset
from hybridcore.errors import ConfigError, ConfigProblem

__all__ = ["app"]

app = App(name="config", help="Write, check and show configurations.")


@app.command
def init(
    path: Path = Path("hybrid.toml"),
    /,
    *,
    preset: str = "balanced",
    force: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Write a configuration with every key explained.

    Args:
        path: File to write.
        preset: Preset that gives the values.
        force: Replace an existing file.
    """
    text = describe_config(load_preset(preset))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            [ConfigProblem(str(path), "the file exists already")],
            source=str(path),
            fix="name another file, or replace it with --force",
        ) from None
    output().print(f"wrote {path}; train with `hybridcore run {path}`", highlight=False, soft_wrap=True)
    return 0


@app.command
def check(
    config: str,
    /,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
) -> int:
    """Check a configuration, the plugins' own tables and the task's options included.

    Args:
        config: TOML file, or the name of a preset.
        set_: Setting dotted.key=value that replaces the file's; may be given again.
    """
    read_config(config, set_ or ())
    output().print(f"{config}: no problems", highlight=False, soft_wrap=True)
    return 0


@app.command
def show(
    config: str | None = None,
    /,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
) -> int:
    """Show a configuration with every key and its meaning, defaults included.

    Args:
        config: TOML file, or the name of a preset; the defaults without it.
        set_: Setting dotted.key=value that replaces the file's; may be given again.
    """
    checked, _ = read_config(config, set_ or ())
    sys.stdout.write(describe_config(checked))
    return 0
