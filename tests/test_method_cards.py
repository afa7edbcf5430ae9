"""Every built-in predictor has a method card that names each of its settings with its default."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from hybridcore.plugins import load_registry

CARDS = Path(__file__).parents[1] / "docs" / "reference" / "predictors"
BUILTIN = {
    n: c for n, c in load_registry(block=()).predictors.items() if c.__module__.startswith("hybridcore.")
}


def toml(value: object) -> str:
    return (
        f'"{value}"'
        if isinstance(value, str)
        else f"{value:.10f}".rstrip("0")
        if 0 < value < 0.01
        else str(value)
    )


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_f85_a_predictor_has_a_card(name: str) -> None:
    card = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n")
    for field in attrs.fields(BUILTIN[name].Config) if hasattr(BUILTIN[name], "Config") else ():
        assert f"| `{field.name}` | `{toml(field.default)}` |" in card, field.name


def test_f85_each_setting_on_a_card_exists() -> None:
    """Cards of plugins are checked by the plugins' own tests."""
    plugins = {folder.name for folder in (CARDS.parents[2] / "plugins").iterdir() if folder.is_dir()}
    for card in (c for c in CARDS.glob("*.md") if c.stem not in plugins):
        rows = [line for line in card.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
        config = getattr(BUILTIN[card.stem], "Config", None)
        known = {f.name for f in attrs.fields(config)} if config is not None else set()
        assert {row.split("`")[1] for row in rows} == known, card.name
