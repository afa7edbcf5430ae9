from __future__ import annotations

import tomllib

import attrs
import pytest

from hybridcore.config import HybridConfig
from hybridcore.configdocs import describe_config, field_docs
from hybridcore.configfile import config_from_dict, load_preset, preset_names

TABLES = {a.name: a.type for a in attrs.fields(attrs.resolve_types(HybridConfig))}


@pytest.mark.parametrize("table", TABLES)
def test_every_key_of_every_table_is_documented(table):
    assert set(field_docs(TABLES[table])) == {field.name for field in attrs.fields(TABLES[table])}
    assert all(text.endswith(".") for text in field_docs(TABLES[table]).values())


@pytest.mark.parametrize("name", preset_names())
def test_described_configuration_loads_back_equal(name):
    config = load_preset(name)
    assert config_from_dict(tomllib.loads(describe_config(config))) == config
