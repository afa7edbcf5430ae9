from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Literal

import attrs
import pytest

from hybridcore.components import build_component, check_config, import_function
from hybridcore.config import between
from hybridcore.errors import ConfigError, TaskError
from hybridcore.structuring import structure, structure_options


@attrs.frozen(kw_only=True)
class DriftConfig:
    rank: int = attrs.field(default=2, validator=between(1, 8))
    damping: float | None = None
    kind: Literal["mean", "median"] = "mean"
    sizes: tuple[int, ...] = ()
    span: tuple[float, float] = (0.0, 1.0)
    weights: dict[str, float] = attrs.field(factory=dict)


class Drift:
    name = "drift"
    Config = DriftConfig

    def __init__(self, config: DriftConfig) -> None:
        self.config = config


class Plain:
    name = "plain"


REGISTRY = SimpleNamespace(
    predictors={"drift": Drift, "last-update": Plain},
    controllers={"threshold": Plain, "credit": Plain},
    correctors={"none": Plain},
    dynamics={"drift": Drift},
    tasks={"digits-mlp": Drift},
    kernels={"reference": Plain},
)


def paths(error: ConfigError) -> list[str]:
    return [problem.path for problem in error.problems]


def test_component_is_built_from_its_table():
    made = build_component(
        Drift, {"rank": 3, "damping": 1, "sizes": [1, 2], "weights": {"a": 1}}, "predictor.drift"
    )
    assert made.config == DriftConfig(rank=3, damping=1.0, sizes=(1, 2), weights={"a": 1.0})
    assert isinstance(build_component(Plain, {}, "predictor.plain"), Plain)


@pytest.mark.parametrize(
    ("options", "path", "expected"),
    [
        ({"rank": 9}, "predictor.drift.rank", "[1, 8]"),
        ({"rank": "2"}, "predictor.drift.rank", "an integer"),
        ({"damping": "x"}, "predictor.drift.damping", "a number"),
        ({"kind": "mode"}, "predictor.drift.kind", "'mean', 'median'"),
        ({"sizes": [1, "2"]}, "predictor.drift.sizes[1]", "an integer"),
        ({"sizes": "12"}, "predictor.drift.sizes", "an array"),
        ({"span": [1.0]}, "predictor.drift.span", "an array of 2 values"),
        ({"weights": {"a": True}}, "predictor.drift.weights.a", "a number"),
    ],
)
def test_bad_option_is_reported_at_its_path(options, path, expected):
    with pytest.raises(ConfigError) as caught:
        build_component(Drift, options, "predictor.drift")
    assert paths(caught.value) == [path]
    assert expected in caught.value.problems[0].expected


def test_component_without_config_takes_no_keys():
    with pytest.raises(ConfigError, match="this table has no keys"):
        build_component(Plain, {"rank": 1}, "predictor.plain")
    assert structure_options(None, {}, "predictor.plain") == (None, [])


def test_validator_that_reads_another_field_still_runs():
    @attrs.frozen
    class Range:
        low: int = 0
        high: int = attrs.field(default=1)

        @high.validator
        def _above(self, attribute, value):
            if value <= self.low:
                raise ValueError("high must lie above low")

    assert structure(Range, {"low": 1, "high": 2}, "t")[1] == []
    assert "high must lie above low" in str(structure(Range, {"low": 3, "high": 2}, "t")[1][0])


def test_names_and_tables_are_checked_against_the_registry_with_everything_else():
    data = {
        "run": {"steps": 0},
        "predictor": {"name": "drft", "drift": {"rank": 99}, "nowcast": {}},
        "controller": {"name": "threshold", "threshold": {"x": 1}},
        "task": {"rank": 0, "kindd": "mean"},
    }
    with pytest.raises(ConfigError) as caught:
        check_config(data, REGISTRY)
    assert paths(caught.value) == [
        "run.steps", "predictor.name", "predictor.drift.rank", "predictor.nowcast",
        "controller.threshold.x", "task.rank", "task.kindd",
    ]  # fmt: skip
    assert "did you mean 'drift'" in str(caught.value)


def test_sound_configuration_passes_the_check():
    config = check_config(
        {"predictor": {"name": "drift", "drift": {"rank": 4}}, "task": {"rank": 3}}, REGISTRY
    )
    assert config.predictor.options["drift"] == {"rank": 4}


def test_unknown_task_and_function_options(tmp_path, monkeypatch):
    (tmp_path / "own_problem.py").write_text("def build(*, framework, seed, device, width=3): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "own_problem", None)  # taken out again afterwards, whatever is imported
    del sys.modules["own_problem"]
    assert check_config({"task": {"name": "own_problem:build", "width": 4}}, REGISTRY)
    with pytest.raises(ConfigError) as caught:
        check_config({"task": {"name": "own_problem:build", "widht": 4}}, REGISTRY)
    assert "did you mean 'width'" in str(caught.value)
    with pytest.raises(ConfigError, match="did you mean 'build'"):
        check_config({"task": {"name": "own_problem:bild"}}, REGISTRY)
    with pytest.raises(ConfigError, match="did you mean 'digits-mlp'"):
        check_config({"task": {"name": "digit-mlp"}}, REGISTRY)


def test_function_that_cannot_be_imported_is_a_task_error():
    with pytest.raises(TaskError, match="cannot be imported"):
        import_function("no_such_module_anywhere:build")
