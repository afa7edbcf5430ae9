from __future__ import annotations

import math
import tomllib

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridcore.config import (
    BudgetConfig,
    GroupsConfig,
    HybridConfig,
    PhasesConfig,
    ProbeConfig,
    RunConfig,
)
from hybridcore.configfile import (
    apply_overrides,
    config_from_dict,
    config_to_dict,
    dump_config,
    load_config,
    load_preset,
    preset_data,
    preset_names,
)
from hybridcore.errors import ConfigError

WRONG = {
    "int": ["3", True, 1.5, None],
    "float": ["3", True, None, math.nan],
    "str": [3, True],
    "bool": [1, "true"],
}
TABLES = {a.name: a.type for a in attrs.fields(attrs.resolve_types(HybridConfig))}
PLAIN = {
    (table, field.name): field
    for table, cls in TABLES.items()
    for field in attrs.fields(attrs.resolve_types(cls))
    if field.name != "options"
}


def problems(data) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(data)
    return {problem.path: str(problem) for problem in caught.value.problems}


def outside(field) -> list[object]:
    """Values of the field's type that its validator must refuse, derived from the validator itself."""
    if field.validator is None:
        return []
    candidates = ["no-such-choice"] if field.type is str else [-1e18, -1, 0, 1e18, 2, 2**40]
    refused = []
    for value in candidates:
        made = int(value) if field.type is int else value
        try:
            field.validator(None, field, made)
        except ValueError:
            refused.append(made)
    assert refused, f"{field.name} has a validator that refuses nothing tried here"
    return refused


@pytest.mark.parametrize(("table", "key"), PLAIN)
def test_wrong_type_of_every_field_is_reported_at_its_path(table, key):
    name = getattr(PLAIN[table, key].type, "__name__", "")
    for value in WRONG.get(name, ["text", 3, [3]]):
        found = problems({table: {key: value}})
        assert len(found) == 1
        path, text = found.popitem()
        assert path.startswith(f"{table}.{key}")
        assert "expected" in text


@pytest.mark.parametrize(("table", "key"), [k for k, f in PLAIN.items() if f.validator is not None])
def test_out_of_range_of_every_field_is_reported_at_its_path(table, key):
    for value in outside(PLAIN[table, key]):
        found = problems({table: {key: value}})
        assert set(found) == {f"{table}.{key}"}
        assert repr(value) in found[f"{table}.{key}"]


def test_every_number_and_choice_has_a_range():
    free = {k for k, f in PLAIN.items() if f.validator is None and f.type in (int, float)}
    assert free == set()


@pytest.mark.parametrize("table", [t for t in TABLES if t not in ("task", "trackers")])
def test_unknown_key_is_an_error_in_every_table(table):
    key = next(k for t, k in PLAIN if t == table)
    found = problems({table: {key + "z": 1}})
    assert f"did you mean {key!r}" in found[f"{table}.{key}z"]


def test_unknown_table_and_misplaced_key():
    assert "did you mean 'phases'" in problems({"fases": {}})["fases"]
    assert "belongs in [phases]" in problems({"run": {"warmup_steps": 3}})["run.warmup_steps"]


def test_scalar_beside_the_name_of_a_plugin_is_unknown():
    found = problems({"predictor": {"name": "drift", "horizon": 3}, "controller": {"threshold": 3}})
    assert "[predictor.drift]" in found["predictor.horizon"]
    assert set(found) == {"predictor.horizon", "controller.threshold"}


def test_four_mistakes_in_one_file_are_reported_together_in_file_order(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        '[phases]\nwarmup_step = 3\nfull_steps = "20"\n[history]\nwindow = 0\n[run]\nsteps = true\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert [p.path for p in caught.value.problems] == [
        "phases.warmup_step", "phases.full_steps", "history.window", "run.steps",
    ]  # fmt: skip
    assert str(file) in str(caught.value)
    assert "got '20', expected an integer" in str(caught.value)
    assert "[1, inf)" in str(caught.value)


def test_integer_is_taken_for_a_number_and_tables_must_be_tables():
    assert config_from_dict({"budget": {"grace_steps": 3}}).budget.grace_steps == 3.0
    assert "expected a table" in problems({"run": 3})["run"]
    assert "expected an array" in problems({"plugins": {"load": "abc"}})["plugins.load"]


def test_task_and_plugin_options_are_kept():
    config = config_from_dict(
        {"task": {"name": "t", "widths": [3, 4]}, "predictor": {"name": "drift", "drift": {"rank": 2}}}
    )
    assert config.task.options == {"widths": [3, 4]}
    assert config.predictor.options == {"drift": {"rank": 2}}


@pytest.mark.parametrize(
    ("text", "position"),
    [("[run]\nsteps = = 3\n", "line 2, column 9"), ("[run]\nsteps = 3\nseed = [1,", "line 3, column 11")],
)
def test_unreadable_toml_names_line_and_column(tmp_path, text, position):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert caught.value.problems[0].path == position


def test_file_that_is_not_text(tmp_path):
    file = tmp_path / "run.toml"
    file.write_bytes(b"[run]\n\xff\xfe")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        load_config(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_missing_file_names_the_closest_one(tmp_path):
    (tmp_path / "hybrid.toml").write_text("")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "hybird.toml")
    assert "hybird.toml" in str(caught.value)
    assert f"did you mean {str(tmp_path / 'hybrid.toml')!r}" in str(caught.value)


def test_overrides_are_toml_values_and_bare_words_are_strings():
    data = {"phases": {"warmup_steps": 3}}
    changed = apply_overrides(
        data,
        ["phases.warmup_steps=10", "run.framework=jax", 'run.device="cuda:0"', "metrics.trace = true",
         "task.widths=[1, 2]", "task.rate=1e-3", "task.name=my.module:build"],
    )  # fmt: skip
    assert data == {"phases": {"warmup_steps": 3}}
    assert changed["phases"] == {"warmup_steps": 10}
    assert changed["run"] == {"framework": "jax", "device": "cuda:0"}
    assert changed["metrics"] == {"trace": True}
    assert changed["task"] == {"widths": [1, 2], "rate": 0.001, "name": "my.module:build"}


def test_value_of_an_override_cannot_add_other_keys():
    assert apply_overrides({}, ["a.b=1\nc = 2"]) == {"a": {"b": "1\nc = 2"}}


def test_every_bad_override_is_reported():
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"run": 3}, ["phases.warmup_steps", "run.steps=3", "=3"])
    assert [p.path for p in caught.value.problems] == ["phases.warmup_steps", "run.steps", "=3"]


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


CONFIGS = st.builds(
    HybridConfig,
    run=st.builds(RunConfig, steps=st.integers(1, 10**9), seed=st.integers(0, 2**31 - 1), device=st.text()),
    phases=st.builds(PhasesConfig, predict_mode=st.sampled_from(["jump", "step"])),
    probe=st.builds(ProbeConfig, tentative=st.booleans(), tolerance=numbers(0, 1e300)),
    budget=st.builds(BudgetConfig, share=numbers(0, 1), backoff_factor=numbers(1, 1e9)),
    groups=st.builds(GroupsConfig, max_relative_jump=numbers(1e-300, 1)),
)


@settings(max_examples=40, deadline=None)
@given(CONFIGS)
def test_dump_and_load_give_an_equal_configuration(config):
    assert config_from_dict(tomllib.loads(dump_config(config))) == config


def test_round_trip_keeps_options(tmp_path):
    data = {
        "task": {"name": "t", "widths": [3]},
        "controller": {"name": "credit", "credit": {"horizons": [5, 10]}},
    }
    config = config_from_dict(data)
    file = tmp_path / "c.toml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
    assert config_to_dict(config)["controller"] == data["controller"]


def test_presets_load_and_differ():
    configs = {name: load_preset(name) for name in preset_names()}
    assert set(configs) == {"cautious", "balanced", "eager"}
    assert configs["cautious"].budget.share < configs["balanced"].budget.share < configs["eager"].budget.share
    assert all(preset_data(name) for name in configs)


def test_unknown_preset_suggests_one():
    with pytest.raises(ConfigError, match="did you mean 'balanced'"):
        load_preset("balance")
