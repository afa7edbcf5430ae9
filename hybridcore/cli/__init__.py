"""The command line; each command lives in a file of its own and is imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["execute", "main"]


def main() -> NoReturn:
    """Run the command that the process was started with, and exit with its code."""
    sys.exit(execute())


def execute(tokens: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        tokens: Words after the program's name; those of the process if None.

    Returns:
        Exit code: 0 for success, 2 for a wrong command line or configuration, 130 after Ctrl-C, 1 for any
        other error of hybridcore.
    """
    from cyclopts import CycloptsError

    from hybridcore.cli.app import app
    from hybridcore.errors import ConfigError, HybridCoreError

    if "" not in sys.path:
        sys.path.append("")  # tasks by module:function are looked up in the working directory too
    try:
        code = app(tokens, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2
    except HybridCoreError as error:
        from hybridcore.cli.common import print_error

        print_error(error)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("interrupted: nothing is recorded of what was under way", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0
