"""Reading and writing of configurations: TOML files, plain data, overrides and presets (F55, F56)."""

from __future__ import annotations

import copy
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from hybridcore.config import HybridConfig, TaskConfig
from hybridcore.errors import ConfigError, ConfigProblem
from hybridcore.structuring import did_you_mean, structure, unknown_key

__all__ = [
    "apply_overrides",
    "config_from_dict",
    "config_to_dict",
    "dump_config",
    "load_config",
    "load_preset",
    "parse_value",
    "preset_names",
    "read_data",
    "set_value",
    "structure_config",
]

_POSITION = re.compile(r"\(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)")
_DEEPEST = 32
_FIX_FILE = "give an existing file, or write one with `hybridcore config init`"


def load_config(path: str | Path) -> HybridConfig:
    """Read a TOML file.

    Args:
        path: The file.

    Raises:
        ConfigError: The file is missing or no TOML, or has mistakes, all of them reported at once.
    """
    return config_from_dict(read_data(path), str(path))


def config_from_dict(data: Mapping[str, Any], source: str = "configuration") -> HybridConfig:
    """Make a configuration from plain data shaped like the TOML file.

    Args:
        data: Tables by name.
        source: Where the data came from; named in the error.

    Raises:
        ConfigError: Every mistake at once, each with its dotted path.

    Example:
        >>> config_from_dict({"phases": {"warmup_steps": 10}}).phases.warmup_steps
        10
    """
    config, problems = structure_config(data)
    if config is None:
        raise ConfigError(in_file_order(problems, data), source=source)
    return config


def structure_config(data: Mapping[str, Any]) -> tuple[HybridConfig | None, list[ConfigProblem]]:
    """Like `config_from_dict`, but hands the problems back instead of raising them."""
    folded, problems = _fold(data)
    config, found = structure(HybridConfig, folded)
    problems += [_with_home(problem) for problem in found]
    return (None if problems else config), problems


def read_data(path: str | Path) -> dict[str, Any]:
    """Plain data of a TOML file.

    Raises:
        ConfigError: The file is missing, unreadable or no TOML; names the line and column, or the
            closest file that exists.
    """
    file = Path(path)
    try:
        return _toml(file.read_bytes().decode())
    except FileNotFoundError:
        problem = ConfigProblem(str(file), "no such file", hint=_closest_file(file))
        raise ConfigError([problem], source=str(file), fix=_FIX_FILE) from None
    except OSError as error:
        problem = ConfigProblem(str(file), f"cannot be read: {error.strerror or error}")
        raise ConfigError([problem], source=str(file), fix=_FIX_FILE) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problem = ConfigProblem(f"line {line}", "not UTF-8 text")
        raise ConfigError([problem], source=str(file), fix="save the file as UTF-8") from None
    except ValueError as error:
        problem = _syntax_problem(str(error), file)
        raise ConfigError([problem], source=str(file), fix="correct the TOML syntax there") from None


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with ``"dotted.key=value"`` settings applied; values are TOML, bare words strings.

    Raises:
        ConfigError: An override has no ``=`` or its key goes through something that is no table.

    Example:
        >>> apply_overrides({}, ["phases.warmup_steps=10", "predictor.name=drift"])
        {'phases': {'warmup_steps': 10}, 'predictor': {'name': 'drift'}}
    """
    result, problems = copy.deepcopy(dict(data)), []
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            problems.append(ConfigProblem(item, "no override", got=item, expected="dotted.key=value"))
            continue
        try:
            set_value(result, key, parse_value(text.strip()))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems, source="overrides")
    return result


def set_value(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key in place, making tables on the way.

    Raises:
        ConfigError: The key goes through something that is no table.

    Example:
        >>> data = {"phases": {"warmup_steps": 5}}
        >>> set_value(data, "phases.full_steps", 3)
        >>> data
        {'phases': {'warmup_steps': 5, 'full_steps': 3}}
    """
    parts = [part.strip() for part in key.split(".")]
    if len(parts) > _DEEPEST:
        problem = ConfigProblem(f"{key[:40]}...", f"nested too deeply, more than {_DEEPEST} levels")
        raise ConfigError([problem], source="overrides")
    table: Any = data
    for depth, part in enumerate(parts[:-1], 1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            where = ".".join(parts[:depth])
            problem = ConfigProblem(key.strip(), f"{where!r} is not a table")
            raise ConfigError([problem], source="overrides")
    table[parts[-1]] = value


def config_to_dict(config: HybridConfig) -> dict[str, Any]:
    """Plain data shaped like the TOML file; `config_from_dict` gives an equal configuration back."""
    data: dict[str, Any] = {}
    for attribute in attrs.fields(HybridConfig):
        table = attrs.asdict(getattr(config, attribute.name))
        options = table.pop("options", {})
        data[attribute.name] = _plain({**table, **options})
    return data


def dump_config(config: HybridConfig) -> str:
    """The configuration as TOML text, every key spelled out."""
    return tomli_w.dumps(config_to_dict(config))


def preset_names() -> tuple[str, ...]:
    """Names of the presets that ship with the package."""
    folder = resources.files("hybridcore") / "presets"
    return tuple(sorted(f.name[: -len(".toml")] for f in folder.iterdir() if f.name.endswith(".toml")))


def load_preset(name: str) -> HybridConfig:
    """The preset of that name.

    Raises:
        ConfigError: No preset has that name.

    Example:
        >>> load_preset("balanced").phases.predict_mode
        'jump'
    """
    return config_from_dict(preset_data(name), f"preset {name}")


def preset_data(name: str) -> dict[str, Any]:
    """Plain data of a preset.

    Raises:
        ConfigError: No preset has that name.
    """
    return tomllib.loads(preset_text(name))


def preset_text(name: str) -> str:
    """TOML text of a preset, comments included.

    Raises:
        ConfigError: No preset has that name.
    """
    names = preset_names()
    if name not in names:
        expected = f"one of {', '.join(map(repr, names))}"
        problem = ConfigProblem(
            "preset", "unknown preset", got=name, expected=expected, hint=did_you_mean(name, names)
        )
        raise ConfigError([problem], source="presets", fix="choose one of the presets above")
    return (resources.files("hybridcore") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def in_file_order(problems: Iterable[ConfigProblem], data: Mapping[str, Any]) -> list[ConfigProblem]:
    """Sort problems as their keys stand in the file; those without a key there come last."""
    places = {path: place for place, path in enumerate(_walk(data, ""))}

    def place(problem: ConfigProblem) -> int:
        path = problem.path
        while path and path not in places:
            path = path.rpartition("[")[0] if path.endswith("]") else path.rpartition(".")[0]
        return places.get(path, len(places))

    return sorted(problems, key=place)


def named_tables() -> dict[str, type[Any]]:
    """Tables that pick a plugin: those whose class has `options`."""
    classes = {a.name: a.type for a in attrs.fields(attrs.resolve_types(HybridConfig))}
    return {name: cls for name, cls in classes.items() if "options" in attrs.fields_dict(cls)}  # type: ignore[arg-type, misc]


def _fold(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[ConfigProblem]]:
    """Move plugin-owned keys under `options`, as the configuration classes hold them."""
    folded, problems = dict(data), []
    for name, cls in named_tables().items():
        table = data.get(name)
        if not isinstance(table, Mapping):
            continue
        known = [key for key in attrs.fields_dict(cls) if key != "options"]
        options = {key: value for key, value in table.items() if key not in known}
        if cls is not TaskConfig:
            for key in [key for key, value in options.items() if not isinstance(value, Mapping)]:
                home = f"[{name}.{table.get('name', '<name>')}]"
                problems.append(
                    unknown_key(f"{name}.{key}", known, hint=f"a plugin's own keys belong in {home}")
                )
                del options[key]
        folded[name] = {key: table[key] for key in known if key in table} | {"options": options}
    return folded, problems


def _with_home(problem: ConfigProblem) -> ConfigProblem:
    """Point an unknown key that exists in another table to that table."""
    key = problem.path.rpartition(".")[2]
    if problem.message == "unknown key" and not (problem.hint or "").startswith("did you mean"):
        classes = {a.name: a.type for a in attrs.fields(attrs.resolve_types(HybridConfig))}
        homes = [name for name, cls in classes.items() if key in attrs.fields_dict(cls)]  # type: ignore[arg-type]
        if homes:
            problem.hint = f"{key!r} belongs in [{homes[0]}]"
    return problem


def _closest_file(file: Path) -> str | None:
    folder = file.parent if file.parent.is_dir() else Path()
    try:
        names = [f.name for f in folder.iterdir() if f.suffix == ".toml"]
    except OSError:
        return None
    close = difflib.get_close_matches(file.name, names, n=1, cutoff=0.4)
    return f"did you mean {str(folder / close[0])!r}?" if close else None


def _syntax_problem(message: str, file: Path) -> ConfigProblem:
    match = _POSITION.search(message)
    text = _POSITION.sub("", message).strip()
    if match is None:
        return ConfigProblem(str(file), f"no valid TOML: {text}")
    if match["line"] is None:
        lines = file.read_text(encoding="utf-8").splitlines() or [""]
        return ConfigProblem(f"line {len(lines)}, column {len(lines[-1]) + 1}", f"no valid TOML: {text}")
    return ConfigProblem(f"line {match['line']}, column {match['column']}", f"no valid TOML: {text}")


def _toml(text: str) -> dict[str, Any]:
    """Read TOML.

    Raises:
        ValueError: It is none, or holds a number of thousands of digits, or is nested so deeply that whatever
            walks through it would exhaust the stack.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"nested too deeply, more than {_DEEPEST} levels") from None
    level: list[Any] = [data]
    for _ in range(_DEEPEST):
        level = [
            item
            for held in level
            for item in (held.values() if isinstance(held, dict) else held)
            if isinstance(item, dict | list)
        ]
        if not level:
            return data
    raise ValueError(f"nested too deeply, more than {_DEEPEST} levels")


def parse_value(text: str) -> Any:
    """A TOML value; a bare word is a string, and so is whatever is no TOML."""
    try:
        parsed = _toml(f"value = {text}")
    except ValueError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _plain(value: Any) -> Any:
    """TOML has no null and one kind of array."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _walk(data: Mapping[str, Any], prefix: str) -> Iterable[str]:
    for key, value in data.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")
