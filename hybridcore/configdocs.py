"""A configuration as TOML with each key explained by its class' own docstring."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

import attrs
import tomli_w

from hybridcore.config import HybridConfig
from hybridcore.configfile import config_to_dict

__all__ = ["describe_config", "field_docs"]

_ENTRY = re.compile(r"^(?P<name>\w+): (?P<text>.*)$")


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Text of each entry of a class docstring's section ``Attributes``, on one line each.

    Example:
        >>> from hybridcore.config import RunConfig
        >>> field_docs(RunConfig)["framework"]
        'Registry name of the adapter.'
    """
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    docs: dict[str, str] = {}
    name = None
    for line in textwrap.dedent(section).splitlines():
        if not line.strip():
            break
        match = _ENTRY.match(line)
        if match is not None:
            name = match["name"]
            docs[name] = match["text"]
        elif name is not None:
            docs[name] += " " + line.strip()
    return docs


def describe_config(config: HybridConfig) -> str:
    """The configuration as TOML text, every key spelled out with a comment; it loads back equal."""
    data, parts = config_to_dict(config), []
    for attribute in attrs.fields(attrs.resolve_types(HybridConfig)):
        docs = field_docs(attribute.type or object)
        own = {key: value for key, value in data[attribute.name].items() if not isinstance(value, dict)}
        tables = {key: value for key, value in data[attribute.name].items() if isinstance(value, dict)}
        lines = [f"[{attribute.name}]"]
        for key, value in own.items():
            lines += textwrap.wrap(docs.get(key, ""), 98, initial_indent="# ", subsequent_indent="# ")
            lines.append(tomli_w.dumps({key: value}).rstrip())
        if tables:
            lines += ["", tomli_w.dumps({attribute.name: tables}).rstrip()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
