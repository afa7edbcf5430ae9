"""State that is a list of an object's attributes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["put", "take"]


def take(owner: object, names: Iterable[str]) -> dict[str, Any]:
    """The attributes of these names, without leading underscores.

    Example:
        >>> from types import SimpleNamespace
        >>> take(SimpleNamespace(_count=3, limit=4), ("_count",))
        {'count': 3}
    """
    return {name.lstrip("_"): getattr(owner, name) for name in names}


def put(owner: object, names: Iterable[str], state: Mapping[str, Any]) -> None:
    """Set the attributes of these names from what `take` gave.

    Raises:
        KeyError: One is missing.
    """
    for name in names:
        setattr(owner, name, state[name.lstrip("_")])
