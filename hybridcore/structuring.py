"""Strict structuring of plain data into attrs classes: nothing is coerced, every mistake is named (F55)."""

from __future__ import annotations

import difflib
import enum
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from hybridcore.errors import ConfigProblem

__all__ = ["did_you_mean", "structure", "structure_options", "unknown_key"]

_GOT_EXPECTED = re.compile(r"^(?P<what>[^:]+): got .*?, expected (?P<expected>.*)$", re.DOTALL)


class _MismatchError(ValueError):
    """A value that its key does not take."""

    def __init__(self, got: object, expected: str, what: str = "wrong type") -> None:
        super().__init__(f"{what}: got {got!r}, expected {expected}")
        self.got, self.expected, self.what = got, expected, what


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """The hint "did you mean 'x'?" for the closest of `candidates`; None where none is close.

    Example:
        >>> did_you_mean("warmup_step", ["warmup_steps", "full_steps"])
        "did you mean 'warmup_steps'?"
    """
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None


def unknown_key(path: str, candidates: Iterable[str], *, hint: str | None = None) -> ConfigProblem:
    """The problem of a key that nothing reads, with the closest known one or the given hint."""
    names = sorted(candidates)
    known = f"known keys: {', '.join(names)}" if names else "this table has no keys"
    return ConfigProblem(
        path, "unknown key", hint=did_you_mean(path.rpartition(".")[2], names) or hint or known
    )


def structure(cls: type[Any], data: object, path: str = "") -> tuple[Any, list[ConfigProblem]]:
    """Make an instance of the attrs class `cls` from plain data.

    Args:
        cls: An attrs class; its types and validators are the rules.
        data: Usually a table of a configuration.
        path: Dotted path of the table, the prefix of every problem's path.

    Returns:
        The instance and no problems, or None and every problem found.
    """
    try:
        return _CONVERTER.structure(data, cls), []
    except Exception as error:
        return None, list(_problems(error, path))


def structure_options(
    cls: type[Any] | None, data: Mapping[str, Any], path: str
) -> tuple[Any, list[ConfigProblem]]:
    """Like `structure` for a plugin's own table; a class of None takes no keys at all."""
    if cls is None:
        return None, [unknown_key(f"{path}.{key}", ()) for key in data]
    return structure(cls, data, path)


def _problems(error: BaseException, path: str) -> Iterable[ConfigProblem]:
    if isinstance(error, BaseValidationError):
        for part in error.exceptions:
            yield from _problems(part, path + _place(part, path))
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [a.name for a in attrs.fields(error.cl) if a.init]
        for key in sorted(error.extra_fields):
            yield unknown_key(f"{path}.{key}" if path else key, known)
    elif isinstance(error, _MismatchError):
        yield ConfigProblem(path, error.what, got=error.got, expected=error.expected)
    else:
        yield ConfigProblem(path, str(error.args[0]) if error.args else type(error).__name__)


def _place(error: BaseException, path: str) -> str:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return f".{note.name}" if path else note.name
        if isinstance(note, IterableValidationNote):
            return f"[{note.index}]" if isinstance(note.index, int) else f".{note.index}"
    return ""


def _strict_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _MismatchError(value, "true or false")


def _strict_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _MismatchError(value, "an integer")


def _strict_float(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _MismatchError(value, "a finite number", "out of range")
        return float(value)
    raise _MismatchError(value, "a number")


def _strict_str(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _MismatchError(value, "a string")


def _path(value: Any, _: Any = None) -> Path:
    return value if isinstance(value, Path) else Path(_strict_str(value))


def _choice(value: Any, names: Iterable[Any]) -> None:
    choices = list(names)
    if not any(value == name and type(value) is type(name) for name in choices):
        raise _MismatchError(value, f"one of {', '.join(map(repr, choices))}", "unknown choice")


def _literal(value: Any, cls: Any) -> Any:
    _choice(value, get_args(cls))
    return value


def _enum(value: Any, cls: Any) -> Any:
    if isinstance(value, cls):
        return value
    _choice(value, [member.value for member in cls])
    return cls(value)


def _union(value: Any, cls: Any) -> Any:
    expected = []
    for option in get_args(cls):
        if option is type(None):
            if value is None:
                return None
            continue
        try:
            return _CONVERTER.structure(value, option)
        except _MismatchError as error:
            expected.append(error.expected)
    raise _MismatchError(value, " or ".join(expected))


def _items(cls: Any, pairs: Iterable[tuple[int | str, Any, Any]]) -> list[Any]:
    """Structure each (place, value, type); gather every failure with its place."""
    done, failed = [], []
    for place, value, item in pairs:
        try:
            done.append(_CONVERTER.structure(value, item))
        except Exception as error:
            error.add_note(IterableValidationNote("item", place, item))
            failed.append(error)
    if failed:
        raise IterableValidationError("items", failed, cls)
    return done


def _sequence(value: Any, cls: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise _MismatchError(value, "an array")
    kinds = get_args(cls) or (Any, ...)
    if get_origin(cls) is tuple and kinds[-1] is not ...:
        if len(value) != len(kinds):
            raise _MismatchError(value, f"an array of {len(kinds)} values", "wrong length")
        return tuple(_items(cls, zip(range(len(value)), value, kinds, strict=True)))
    items = _items(cls, ((i, v, kinds[0]) for i, v in enumerate(value)))
    return items if (get_origin(cls) or cls) is list else tuple(items)


def _mapping(value: Any, cls: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _MismatchError(value, "a table")
    kind = get_args(cls)[1] if get_args(cls) else Any
    return dict(zip(value, _items(cls, ((str(k), v, kind) for k, v in value.items())), strict=True))


def _validated(attribute: attrs.Attribute[Any]) -> Callable[[Any, Any], Any]:
    """Hook of one field: its type, then its validator, so that every bad field of a table is found."""

    def hook(value: Any, _: Any) -> Any:
        made = _CONVERTER.structure(value, attribute.type)  # type: ignore[arg-type]
        if attribute.validator is not None:
            try:
                attribute.validator(None, attribute, made)
            except (ValueError, TypeError) as error:
                match = _GOT_EXPECTED.match(str(error.args[0]))
                if match is None:
                    raise
                raise _MismatchError(value, match["expected"], match["what"]) from None
            except AttributeError:
                pass  # the validator reads other fields: the constructor runs it again with the instance
        return made

    return hook


def _class(cls: Any) -> Callable[[Any, Any], Any]:
    cls = attrs.resolve_types(cls)
    overrides: dict[str, Any] = {
        a.name: override(struct_hook=_validated(a)) for a in attrs.fields(cls) if a.init
    }
    make = make_dict_structure_fn(
        cls, _CONVERTER, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **overrides
    )

    def hook(value: Any, kind: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _MismatchError(value, "a table")
        return make(value, kind)

    return hook


_STRICT: dict[Any, Callable[[Any], Any]] = {
    bool: _strict_bool,
    int: _strict_int,
    float: _strict_float,
    str: _strict_str,
}


def _exact(strict: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    # cattrs finds these hooks for subclasses too, and enumerations may be strings or integers.
    return lambda value, cls: _enum(value, cls) if issubclass(cls, enum.Enum) else strict(value)


def _is_union(cls: Any) -> bool:
    return get_origin(cls) in (Union, types.UnionType)


def _is_kind(*kinds: type) -> Callable[[Any], bool]:
    return lambda cls: (get_origin(cls) or cls) in kinds


def _converter() -> Converter:
    made = Converter(detailed_validation=True)
    made.register_structure_hook_factory(attrs.has, _class)
    for kind, strict in _STRICT.items():
        made.register_structure_hook(kind, _exact(strict))
    hooks: list[tuple[Callable[[Any], bool], Callable[[Any, Any], Any]]] = [
        (_is_kind(Any), lambda value, _: value),
        (_is_kind(Path), _path),
        (_is_kind(list, tuple), _sequence),
        (lambda cls: get_origin(cls) in (dict, Mapping) or cls is dict, _mapping),
        (lambda cls: get_origin(cls) is Literal, _literal),
        (lambda cls: isinstance(cls, type) and issubclass(cls, enum.Enum), _enum),
        (_is_union, _union),
    ]
    for predicate, hook in hooks:
        made.register_structure_hook_func(predicate, hook)
    return made


_CONVERTER = _converter()
