"""Prints docs/reference/configuration.md from the configuration's own classes."""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import attrs

from hybridcore.config import HybridConfig
from hybridcore.configdocs import field_docs
from hybridcore.plugins import load_registry

HEAD = """\
# Configuration

<!-- Made by docs/make_configuration.py; do not edit. -->

A configuration is one TOML file. Every key has a default, so that an empty file is a configuration too.
`hybridcore config init` writes a file with every key explained, `hybridcore config check FILE` reports all
mistakes at once, and `hybridcore config show FILE` shows what a file amounts to. `--set table.key=value`
replaces a key for one call.

Presets may be named instead of a file: `balanced`, `cautious` and `eager`.

A plugin's own keys live in a table under its registry name, such as `[controller.credit]`; only the chosen
plugin's table is read, but all of them are checked.
"""

KINDS = (
    ("controllers", "Controllers", "controller", "[controller.{}]"),
    ("predictors", "Predictors", "predictor", "[predictor.{}]"),
    ("correctors", "Correctors", "corrector", "[correction.{}]"),
    ("dynamics", "Dynamics models", "dynamics", "[dynamics.{}]"),
    ("monitors", "Monitors", "monitor", "[divergence.{}]"),
    ("tasks", "Tasks", "task", '[task] with name = "{}"'),
    ("trackers", "Trackers", "tracker", "[trackers.{}]"),
    ("kernels", "Kernel sets", "kernel", "[kernels]"),
)


def main() -> None:
    """Print the page."""
    parts = [HEAD]
    for table in attrs.fields(attrs.resolve_types(HybridConfig)):
        own = [field for field in attrs.fields(table.type) if field.name != "options"]
        text = rows(table.type) if own else f"{sentence(table.type)}\n"
        parts.append(f"## [{table.name}]\n\n{text}")
    registry = load_registry()
    own = {
        (kind, name)
        for record in registry.records
        if record.distribution == "hybridcore"
        for kind, name in record.provides
    }
    for attribute, heading, kind, home in KINDS:
        parts.append(f"## {heading}\n")
        for name, cls in sorted(getattr(registry, attribute).items()):
            if (kind, name) not in own:
                continue
            parts.append(f"### `{name}`\n\n{sentence(cls)}\n")
            config = getattr(cls, "Config", None)
            title = home.format(name)
            parts.append(f"Keys of `{title}`:\n\n{rows(config)}" if config else "No keys.\n")
    sys.stdout.write("\n".join(parts))


def rows(config: Any) -> str:
    """A Markdown table of a class' fields."""
    docs: dict[str, str] = {}
    for base in reversed(config.__mro__):
        docs |= field_docs(base)
    lines = ["| key | default | range | meaning |", "|---|---|---|---|"]
    for field in attrs.fields(attrs.resolve_types(config)):
        if field.name != "options":
            meaning = plain(docs.get(field.name, ""))
            lines.append(f"| `{field.name}` | `{default(field)}` | {allowed(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def default(field: Any) -> str:
    """A field's default as TOML writes it."""
    if field.default is attrs.NOTHING:
        return "required"
    value = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value)) if isinstance(value, tuple) else f"{value}"


def allowed(field: Any) -> str:
    """What a field's type and validator allow: the validator is asked with a value that it refuses."""
    kind = {"int": "integer", "float": "number", "str": "text", "bool": "true or false"}.get(
        getattr(field.type, "__name__", ""), "list of text"
    )
    if field.validator is None:
        return kind
    try:
        field.validator(None, field, math.nan)
    except ValueError as error:
        expected = str(error).rpartition("expected ")[2]
        interval = expected.removeprefix("a number in ")
        if interval != expected:
            return f"{kind} in {interval.replace('2.14748e+09', '2147483647')}"
        return plain(expected.replace("'", "`")).removeprefix("one of ")
    except TypeError:  # the validator of a list: what it wants stands in the field's description
        return "list"
    return kind


def sentence(cls: Any) -> str:
    """The first paragraph of a class' docstring on one line."""
    return plain(" ".join((cls.__doc__ or "").strip().split("\n\n")[0].split()))


def plain(text: str) -> str:
    """Docstring markup as Markdown, safe inside a table."""
    text = re.sub(r" \(F\d+(?:, F\d+)*\)", "", text)
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")


if __name__ == "__main__":
    main()
