"""Whether a class that a plugin registers keeps the protocol of its kind, as far as a look can tell."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from typing import Any

import attrs

from hybridcore.errors import ApiVersionError, PluginError
from hybridcore.history import NEEDS
from hybridcore.protocols import (
    API_VERSION,
    Controller,
    Corrector,
    Dynamics,
    KernelSet,
    LinearisingPredictor,
    MeasuringPredictor,
    Monitor,
    Predictor,
    Task,
    Tracker,
)

__all__ = ["PROTOCOLS", "check_class", "did_you_mean", "protocol_methods"]

PROTOCOLS: dict[str, type[Any]] = {
    "predictor": Predictor,
    "controller": Controller,
    "corrector": Corrector,
    "dynamics": Dynamics,
    "monitor": Monitor,
    "task": Task,
    "tracker": Tracker,
    "kernel": KernelSet,
}
"""Kind to the protocol that its classes keep."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Suggestion for a misspelt name, or `otherwise` where nothing is close.

    Example:
        >>> did_you_mean("last-updte", ["drift", "last-update"], "look it up")
        "did you mean 'last-update'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise


def protocol_methods(protocol: type[Any]) -> dict[str, inspect.Signature]:
    """Public methods of a protocol and their signatures.

    Example:
        >>> sorted(protocol_methods(Tracker))
        ['close', 'on_event']
    """
    return {
        name: inspect.signature(member)
        for name, member in vars(protocol).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


def check_class(kind: str, cls: object, source: str) -> None:
    """Raise unless `cls` can serve as a `kind`.

    Args:
        kind: A key of `PROTOCOLS`.
        cls: What the plugin's hook returned.
        source: Distribution and plugin, for the message.

    Raises:
        ApiVersionError: It was written for another version of the protocols.
        PluginError: It is no class, or misses or bends a part of the protocol.
    """
    if not isinstance(cls, type):
        raise PluginError(
            f"a plugin registers something that is not a {kind} class",
            where=source,
            got=repr(cls),
            expected="a class; a run makes its own instances",
            fix=f"return the class itself from hybridcore_{kind}s()",
        )
    where = f"{source}, class {cls.__module__}.{cls.__qualname__}"
    protocol = PROTOCOLS[kind]
    _check_name(kind, cls, where)
    if "api_version" in protocol.__annotations__:
        _check_version(cls, where)
    _check_methods(kind, cls, protocol, where)
    if kind == "predictor" and hasattr(cls, "predict_with"):
        _check_methods(kind, cls, MeasuringPredictor, where)
    if kind == "predictor" and hasattr(cls, "predict_linearised"):
        _check_methods(kind, cls, LinearisingPredictor, where)
    missing = [a for a in protocol.__annotations__ if not hasattr(cls, a)]
    if missing:
        raise PluginError(
            f"a {kind} class lacks attributes: {', '.join(missing)}",
            where=where,
            expected=f"class attributes {', '.join(protocol.__annotations__)}",
            fix=f"add them to {cls.__name__}",
        )
    _check_needs(kind, cls, where)
    _check_config(kind, cls, where)


def _check_name(kind: str, cls: type[Any], where: str) -> None:
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(
            f"a {kind} class has no valid registry name",
            where=where,
            got=repr(name),
            expected="a class attribute `name` in kebab-case, such as 'last-update'",
            fix=f'add `name = "{kind}-of-mine"` to {cls.__name__}',
        )


def _check_version(cls: type[Any], where: str) -> None:
    version = getattr(cls, "api_version", None)
    if version != API_VERSION or isinstance(version, bool):
        raise ApiVersionError(
            "a plugin was written for another version of the protocols",
            where=where,
            got=f"api_version = {version!r}",
            expected=f"api_version = {API_VERSION}",
            fix="upgrade the plugin, or adapt it and set its `api_version`"
            if not isinstance(version, int) or version < API_VERSION
            else "pip install --upgrade hybridcore",
        )


def _check_methods(kind: str, cls: type[Any], protocol: type[Any], where: str) -> None:
    methods = protocol_methods(protocol)
    missing = [m for m in methods if not callable(getattr(cls, m, None))]
    if missing:
        raise PluginError(
            f"a {kind} class misses methods: {', '.join(missing)}",
            where=where,
            got=", ".join(m for m in methods if m not in missing) or "none of them",
            expected=", ".join(methods),
            fix=f"add {', '.join(f'{m}{methods[m]}' for m in missing)}",
        )
    for name, wanted in methods.items():
        bound = isinstance(inspect.getattr_static(cls, name), classmethod | staticmethod)
        parameters = list(wanted.parameters)[bound:]
        got = inspect.signature(getattr(cls, name))
        try:
            got.bind(*parameters)
        except TypeError as error:
            raise PluginError(
                f"a {kind} class has a method that cannot be called as the protocol says: {error}",
                where=f"{where}, method {name}",
                got=str(got),
                expected=str(wanted),
                fix=f"give {cls.__name__}.{name} the parameters {', '.join(parameters)}",
            ) from None


def _check_needs(kind: str, cls: type[Any], where: str) -> None:
    needs: object = getattr(cls, "needs", frozenset())
    unknown = set(needs) - NEEDS if isinstance(needs, set | frozenset) else {str(needs)}
    if unknown:
        raise PluginError(
            f"a {kind} class needs something that the history does not keep",
            where=f"{where}, attribute needs",
            got=sorted(unknown),
            expected=f"a frozenset of {sorted(NEEDS)}",
            fix=did_you_mean(sorted(unknown)[0], NEEDS, "correct the class attribute `needs`"),
        )


def _check_config(kind: str, cls: type[Any], where: str) -> None:
    config = getattr(cls, "Config", None)
    if config is not None and not attrs.has(config):
        raise PluginError(
            f"the Config of a {kind} class is not an attrs class",
            where=f"{where}, attribute Config",
            got=repr(config),
            expected="a class made with attrs.frozen(kw_only=True)",
            fix="decorate it with @attrs.frozen(kw_only=True)",
        )
