"""Making instances of plugin classes from their tables, and checking names and tables against a registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from hybridcore.config import HybridConfig
from hybridcore.configfile import in_file_order, read_data, structure_config
from hybridcore.errors import ConfigError, ConfigProblem, TaskError
from hybridcore.policy import ANY
from hybridcore.structuring import did_you_mean, structure_options, unknown_key

__all__ = ["Classes", "build_component", "check_config", "import_function"]


class Classes(Protocol):
    """The part of a registry that is read here: classes by registry name, one mapping per kind."""

    @property
    def predictors(self) -> Mapping[str, type[Any]]:
        """Predictor classes."""
        ...

    @property
    def controllers(self) -> Mapping[str, type[Any]]:
        """Controller classes."""
        ...

    @property
    def correctors(self) -> Mapping[str, type[Any]]:
        """Corrector classes."""
        ...

    @property
    def dynamics(self) -> Mapping[str, type[Any]]:
        """Dynamics model classes."""
        ...

    @property
    def monitors(self) -> Mapping[str, type[Any]]:
        """Monitor classes."""
        ...

    @property
    def kernels(self) -> Mapping[str, type[Any]]:
        """Kernel set classes."""
        ...

    @property
    def trackers(self) -> Mapping[str, type[Any]]:
        """Tracker classes."""
        ...

    @property
    def tasks(self) -> Mapping[str, type[Any]]:
        """Task classes."""
        ...


def build_component(cls: type[Any], options: Mapping[str, Any], path: str) -> Any:
    """Instance of a plugin class: ``cls(cls.Config(**options))``, or ``cls()`` where it has no `Config`.

    Args:
        cls: The class that a registry name stands for.
        options: Its table.
        path: Dotted path of the table, for error messages.

    Raises:
        ConfigError: The table has unknown keys, wrong types or values out of range.
    """
    made, problems = structure_options(getattr(cls, "Config", None), options, path)
    if problems:
        raise ConfigError(problems, source=f"options of {getattr(cls, 'name', cls.__name__)!r}")
    return cls() if made is None else cls(made)


def import_function(name: str) -> Callable[..., Any]:
    """The function that ``"module:function"`` names.

    Raises:
        TaskError: The module cannot be imported or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:
        raise TaskError(
            f"the module {module_name!r} of the task cannot be imported: {error}",
            where="task.name",
            got=name,
            expected="module:function, the module importable from here",
            fix="run from the folder that holds the module, or install it",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise TaskError(
            f"the module {module_name!r} has no function {function_name!r}",
            where="task.name",
            got=name,
            expected="module:function",
            fix=did_you_mean(function_name, [k for k, v in vars(module).items() if callable(v)]),
        )
    found: Callable[..., Any] = function
    return found


def check_config(
    source: str | Path | Mapping[str, Any],
    registry: Classes | None = None,
    *,
    origin: str = "configuration",
) -> HybridConfig:
    """Read a configuration and check everything that can be known before a run.

    Args:
        source: A TOML file, or plain data shaped like it.
        registry: Where given, names and plugin-owned tables are checked against it too.
        origin: Where plain data came from; named in the error.

    Raises:
        ConfigError: Every mistake at once.
    """
    data = source if isinstance(source, Mapping) else read_data(source)
    config, problems = structure_config(data)
    if registry is not None:
        defaults = HybridConfig()
        problems += _check_named(data, "controller", registry.controllers, defaults.controller.name)
        problems += _check_named(data, "predictor", registry.predictors, defaults.predictor.name)
        problems += _check_named(data, "correction", registry.correctors, defaults.correction.name)
        models = {"none": type(None), **registry.dynamics}
        problems += _check_named(data, "dynamics", models, defaults.dynamics.name)
        if "divergence" in data:
            problems += _check_monitors(data["divergence"], registry.monitors)
        if "recovery" in data:
            problems += _check_policy(data["recovery"], registry.monitors)
        if isinstance(data.get("trackers"), Mapping):
            problems += _check_own_tables(data["trackers"], "trackers", registry.trackers)
        problems += _check_kernels(data, registry.kernels)
        problems += _check_task(data, registry, defaults.task.name)
    if config is None or problems:
        where = origin if isinstance(source, Mapping) else str(source)
        raise ConfigError(in_file_order(problems, data), source=where)
    return config


def _check_named(
    data: Mapping[str, Any], table: str, classes: Mapping[str, type[Any]], default: str
) -> list[ConfigProblem]:
    """Problems of ``[table]``, whose sub-tables belong to the plugins they are named after."""
    content = data.get(table, {})
    if not isinstance(content, Mapping):
        return []
    problems = _unknown_name(content.get("name", default), f"{table}.name", table, classes)
    return problems + _check_own_tables(content, table, classes)


def _check_own_tables(
    content: Mapping[str, Any], table: str, classes: Mapping[str, type[Any]]
) -> list[ConfigProblem]:
    problems = []
    for name, options in content.items():
        if isinstance(options, Mapping):
            if name in classes:
                config = getattr(classes[name], "Config", None)
                problems += structure_options(config, options, f"{table}.{name}")[1]
            else:
                problems.append(unknown_key(f"{table}.{name}", classes))
    return problems


def _check_monitors(content: object, classes: Mapping[str, type[Any]]) -> list[ConfigProblem]:
    """Problems of ``[divergence]``, whose key `monitors` lists registry names."""
    if not isinstance(content, Mapping):
        return []
    names = content.get("monitors", ())
    problems = []
    for index, name in enumerate(names if isinstance(names, list | tuple) else ()):
        problems += _unknown_name(name, f"divergence.monitors[{index}]", "monitor", classes)
    return problems + _check_own_tables(content, "divergence", classes)


def _check_policy(content: object, classes: Mapping[str, type[Any]]) -> list[ConfigProblem]:
    """Problems of the rows of ``[recovery.policy]``, each named after a monitor."""
    policy = content.get("policy", {}) if isinstance(content, Mapping) else {}
    rows = policy if isinstance(policy, Mapping) else {}
    known = {*classes, ANY}
    return [unknown_key(f"recovery.policy.{name}", known) for name in rows if name not in known]


def _check_kernels(data: Mapping[str, Any], classes: Mapping[str, type[Any]]) -> list[ConfigProblem]:
    content = data.get("kernels", {})
    name = content.get("name", "auto") if isinstance(content, Mapping) else "auto"
    return _unknown_name(name, "kernels.name", "kernel set", {"auto": None, **classes})


def _check_task(data: Mapping[str, Any], registry: Classes, default: str) -> list[ConfigProblem]:
    content = data.get("task", {})
    if not isinstance(content, Mapping):
        return []
    name = content.get("name", default)
    options = {key: value for key, value in content.items() if key != "name"}
    if isinstance(name, str) and ":" in name:
        return _check_function(name, options)
    if name in registry.tasks:
        return structure_options(getattr(registry.tasks[name], "Config", None), options, "task")[1]
    return _unknown_name(name, "task.name", "task", registry.tasks)


def _check_function(name: str, options: Mapping[str, Any]) -> list[ConfigProblem]:
    try:
        parameters = inspect.signature(import_function(name)).parameters.values()
    except TaskError as error:
        return [ConfigProblem("task.name", error.what, hint=error.fix)]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return []
    known = [p.name for p in parameters if p.name not in ("framework", "seed", "device")]
    return [unknown_key(f"task.{key}", known) for key in options if key not in known]


def _unknown_name(name: object, path: str, kind: str, known: Mapping[str, Any]) -> list[ConfigProblem]:
    if not isinstance(name, str) or name in known:
        return []
    hint = did_you_mean(name, known) or "`hybridcore plugins list` shows what is installed"
    expected = f"one of {', '.join(sorted(known))}"
    return [ConfigProblem(path, f"unknown {kind}", got=name, expected=expected, hint=hint)]
