"""Frameworks: found by their entry points without an import, loaded one at a time."""

from __future__ import annotations

from importlib import metadata

import attrs

from hybridcore.errors import AdapterNotFoundError, ApiVersionError, PluginError
from hybridcore.plugin_checks import did_you_mean, protocol_methods
from hybridcore.protocols import API_VERSION, Framework

__all__ = ["GROUP", "FrameworkEntry", "detect_framework", "list_frameworks", "load_framework"]

GROUP = "hybridcore.adapters"
"""Entry-point group of the adapters."""

_OFFICIAL = {
    "numpy": "pip install --force-reinstall --no-deps hybridcore",
    "torch": "pip install hybridcore-torch",
    "tensorflow": "pip install 'hybridcore-tensorflow[cpu]'",
    "jax": "pip install hybridcore-jax",
}
"""Framework to the command that installs its adapter."""

_ROOTS = {"hybridcore": "numpy", "keras": "tensorflow", "equinox": "jax", "flax": "jax", "haiku": "jax"}
"""Top-level package of a model's class to its framework, where the two names differ."""


@attrs.frozen
class FrameworkEntry:
    """One installed adapter, not imported.

    Attributes:
        name: Framework name, such as ``"torch"``.
        distribution: Distribution that brings the adapter.
        version: Version of that distribution.
        value: ``module:object`` that the entry point names.
    """

    name: str
    distribution: str
    version: str
    value: str


def _entry_points() -> list[metadata.EntryPoint]:
    return sorted(metadata.entry_points(group=GROUP), key=lambda e: (e.name, e.value))


def _describe(point: metadata.EntryPoint) -> FrameworkEntry:
    dist = point.dist
    name, version = (dist.name, dist.version) if dist is not None else ("unknown", "unknown")
    return FrameworkEntry(point.name, name, version, point.value)


def list_frameworks() -> tuple[FrameworkEntry, ...]:
    """All installed adapters, sorted by name; imports none of them.

    Example:
        >>> "numpy" in [entry.name for entry in list_frameworks()]
        True
    """
    return tuple(_describe(point) for point in _entry_points())


def load_framework(name: str) -> Framework:
    """Import one adapter; all others stay untouched.

    Args:
        name: Framework name, as in ``run.framework``.

    Raises:
        AdapterNotFoundError: No installed adapter has this name.
        ApiVersionError: The adapter was written for another version of the protocols.
        PluginError: Two distributions bring it, or it cannot be imported or misses a method.
    """
    points = [p for p in _entry_points() if p.name == name]
    if not points:
        raise _not_found(name)
    entries = [_describe(p) for p in points]
    if len(points) > 1:
        raise PluginError(
            f"two distributions bring an adapter of {name!r}",
            where=f"entry points {GROUP}",
            got=" and ".join(f"{e.distribution} {e.version}" for e in entries),
            expected="one adapter per framework",
            fix=f"pip uninstall {entries[-1].distribution}",
        )
    entry = entries[0]
    where = f"{entry.value} of {entry.distribution} {entry.version}"
    try:
        framework = points[0].load()
    except Exception as error:
        raise PluginError(
            f"the adapter of {name!r} cannot be imported: {type(error).__name__}: {error}",
            where=where,
            fix=f"pip install --upgrade {entry.distribution}",
        ) from error
    _check(framework, name, where, entry)
    return framework  # type: ignore[no-any-return]


def _not_found(name: str) -> AdapterNotFoundError:
    installed = [p.name for p in _entry_points()]
    otherwise = "install its adapter, or choose an installed framework in run.framework"
    return AdapterNotFoundError(
        "no adapter of this framework is installed",
        where="run.framework",
        got=repr(name),
        expected=f"one of {', '.join(installed) or 'none installed'}",
        fix=_OFFICIAL.get(name) or did_you_mean(name, [*installed, *_OFFICIAL], otherwise),
    )


def _check(framework: object, name: str, where: str, entry: FrameworkEntry) -> None:
    missing = [m for m in protocol_methods(Framework) if not callable(getattr(framework, m, None))]
    own_name = getattr(framework, "name", None)
    if missing or own_name != name:
        raise PluginError(
            f"the adapter of {name!r} does not keep the Framework protocol",
            where=where,
            got=f"name = {own_name!r}, missing methods: {', '.join(missing) or 'none'}",
            expected=f"name = {name!r} and methods {', '.join(protocol_methods(Framework))}",
            fix=f"pip install --upgrade {entry.distribution}",
        )
    version = getattr(framework, "api_version", None)
    if version != API_VERSION:
        newer = isinstance(version, int) and version > API_VERSION
        raise ApiVersionError(
            "an adapter was written for another version of the protocols",
            where=where,
            got=f"api_version = {version!r}",
            expected=f"api_version = {API_VERSION}",
            fix=f"pip install --upgrade {'hybridcore' if newer else entry.distribution}",
        )


def detect_framework(model: object) -> str:
    """Name of the framework that a model belongs to.

    Looks at the top-level packages of the classes that the model's type derives from, so that no adapter
    but the matching one is imported; that one confirms by its `owns`.

    Args:
        model: A model object.

    Raises:
        AdapterNotFoundError: No installed adapter knows it, or its adapter is not installed.
    """
    roots = [cls.__module__.partition(".")[0] for cls in type(model).__mro__]
    installed = {p.name for p in _entry_points()}
    candidates = list(dict.fromkeys(_ROOTS.get(root, root) for root in roots))
    for candidate in candidates:
        if candidate in installed and load_framework(candidate).owns(model):
            return candidate
    for candidate in candidates:
        if candidate in _OFFICIAL and candidate not in installed:
            raise _not_found(candidate)
    raise AdapterNotFoundError(
        "the model belongs to no framework that an installed adapter serves",
        where="model",
        got=f"{type(model).__module__}.{type(model).__qualname__}",
        expected=f"a model of {', '.join(sorted(installed)) or 'none installed'}",
        fix="pass the model object itself, or name the framework in run.framework",
    )
