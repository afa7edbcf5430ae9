"""The grid of a sweep: every combination of some settings, checked, and the baseline of each (F75, F76)."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hybridcore.components import check_config
from hybridcore.config import HybridConfig
from hybridcore.configfile import apply_overrides, config_to_dict, parse_value, set_value
from hybridcore.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["Point", "baseline_point", "parse_grid", "plan_sweep"]

_UNSAFE = re.compile(r"[^A-Za-z0-9._=-]+")
_PLAIN = ("run", "task", "average", "checkpoint", "metrics", "trackers", "plugins")
"""Tables that the plain loop reads."""


@attrs.frozen
class Point:
    """One combination of settings.

    Attributes:
        settings: Values by dotted key.
        config: The checked configuration.
        folder: Name of its folder; depends on the whole configuration and on the arm, but not on the seed.
    """

    settings: Mapping[str, Any]
    config: HybridConfig
    folder: str

    @property
    def words(self) -> str:
        """Its settings in words, such as ``"learning_rate=0.01 horizon=10"``."""
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items())


def parse_grid(items: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Values by dotted key from ``"dotted.key=value,value"``; values are TOML, bare words strings.

    Raises:
        ConfigError: An item has no key or value, or a key or value comes twice.

    Example:
        >>> parse_grid(["task.learning_rate=1e-3,1e-2", "predictor.name=drift,last-update"])
        {'task.learning_rate': (0.001, 0.01), 'predictor.name': ('drift', 'last-update')}
    """
    grid: dict[str, tuple[Any, ...]] = {}
    problems = []
    for item in items:
        key, equals, text = item.partition("=")
        key, values = key.strip(), _values(text)
        if not equals or not key or not values:
            expected = "dotted.key=value,value"
            problems.append(ConfigProblem(key or item, "no grid", got=item, expected=expected))
        elif key in grid:
            problems.append(ConfigProblem(key, "in the grid twice", hint="name all values in one --grid"))
        elif any(value in values[:place] for place, value in enumerate(values)):
            problems.append(ConfigProblem(key, "a value comes twice", got=text, expected="different values"))
        elif key == "run.seed":
            problems.append(ConfigProblem(key, "seeds are no setting to compare", hint="use --seeds"))
        else:
            grid[key] = values
    if not grid and not problems:
        problems.append(ConfigProblem("--grid", "no setting is varied", expected="dotted.key=value,value"))
    if problems:
        raise ConfigError(problems, source="grid", fix="correct the option --grid")
    return grid


def _values(text: str) -> tuple[Any, ...]:
    try:
        return tuple(tomllib.loads(f"values = [{text}]")["values"])
    except tomllib.TOMLDecodeError:
        return tuple(parse_value(word.strip()) for word in text.split(",") if word.strip())


def plan_sweep(
    data: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    registry: Registry,
    *,
    arm: str = "hybrid",
    origin: str = "configuration",
) -> tuple[Point, ...]:
    """Check every combination before anything is trained.

    Args:
        data: Plain data shaped like the TOML file.
        grid: Values by dotted key.
        registry: Where names are looked up.
        arm: Arm that will be trained.
        origin: Where the data came from; named in errors.

    Raises:
        ConfigError: A key is unknown or a value wrong; tells every mistake of the first bad combination.
    """
    points = []
    for combination in itertools.product(*grid.values()):
        settings = dict(zip(grid, combination, strict=True))
        changed = apply_overrides(data, ())
        for key, value in settings.items():
            set_value(changed, key, value)
        config = check_config(changed, registry, origin=origin)
        points.append(Point(settings, config, _folder(settings, config, arm)))
    return tuple(points)


def _folder(settings: Mapping[str, Any], config: HybridConfig, arm: str) -> str:
    """Readable, and different for whatever changes a run."""
    table = config_to_dict(config)
    for section, key in (("run", "seed"), ("run", "directory"), ("metrics", "trace")):
        table[section].pop(key)
    digest = hashlib.sha256(json.dumps([arm, table], sort_keys=True).encode()).hexdigest()[:10]
    words = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())
    return f"{_UNSAFE.sub('_', words)[:80]}-{digest}"


def baseline_point(point: Point) -> Point:
    """The plain loop that a point is paired with: the same for all points that only set the engine.

    Its settings are those of the point's that the plain loop reads.

    Example:
        >>> grid = {"task.learning_rate": [0.1], "controller.name": ["credit", "threshold"]}
        >>> from hybridcore.plugins import load_registry
        >>> points = plan_sweep({"task": {"name": "quadratic"}}, grid, load_registry())
        >>> len(points), len({baseline_point(point).folder for point in points})
        (2, 1)
    """
    own = point.config
    tables = (*_PLAIN, "probe") if own.average.enabled else _PLAIN
    config = attrs.evolve(HybridConfig(), **{table: getattr(own, table) for table in tables})
    settings = {key: v for key, v in point.settings.items() if key.partition(".")[0] in tables}
    return Point(settings, config, f"baseline-{_folder(settings, config, 'baseline')}")
