from __future__ import annotations

import math

import pytest

from hybridcore.config import DivergenceConfig
from hybridcore.divergence import DivergenceWatch, build_monitors
from hybridcore.errors import ConfigError, PluginError
from hybridcore.protocols import Signal, SignalLevel
from hybridcore.testing.monitor_contract import records

LEVELS = {"c": SignalLevel.CAUTION, "W": SignalLevel.WARNING, "C": SignalLevel.CRITICAL}


class Scripted:
    """Says what a text of levels says, one letter a check; '-' is nothing."""

    api_version = 1

    def __init__(self, script, name="scripted", every_step=False):
        self.script, self.name, self.every_step = list(script), name, every_step
        self.seen = 0

    def observe(self, record):
        self.seen += 1

    def check(self, record):
        letter = self.script.pop(0) if self.script else "-"
        return Signal(LEVELS[letter], self.name, 2.0, 1.0) if letter in LEVELS else None

    def reset(self):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def play(watch, steps):
    """Levels found after each step, as letters."""
    found = []
    for record in records([1.0] * steps):
        watch.observe(record)
        found.append("".join(s.level.name[0] if s.level > 1 else "c" for s in watch.check(record)) or "-")
    return "".join(found)


@pytest.mark.parametrize(("steps", "every"), [(100, 10), (101, 10), (9, 10), (10, 1), (7, 3), (1, 5)])
def test_f36_number_of_checks_is_steps_over_interval_rounded_up(steps, every):
    monitor = Scripted("")
    watch = DivergenceWatch([monitor], DivergenceConfig(check_every=every))
    play(watch, steps)
    watch.finish(records([1.0])[0])
    assert watch.checks == math.ceil(steps / every)
    assert monitor.seen == steps, "each step is observed, whatever the interval"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("WWW", "WWC"),
        ("WW-W", "WW-W"),
        ("WWcWW", "WW-WW"),
        ("WWWWWW", "WWCWWC"),
        ("WCWW", "WCWC"),
        ("ccc", "c--"),
        ("c-c", "c-c"),
    ],
)
def test_f35_three_warnings_in_a_row_are_critical(script, said):
    watch = DivergenceWatch([Scripted(script)], DivergenceConfig(check_every=1))
    assert play(watch, len(script)) == said


def test_f35_rows_of_different_monitors_are_counted_apart():
    monitors = [Scripted("W-W-W-", "one"), Scripted("-W-W-W", "two")]
    watch = DivergenceWatch(monitors, DivergenceConfig(check_every=1))
    assert play(watch, 6) == "WWWWWW"
    assert watch.divergences == 0


@pytest.mark.parametrize(
    ("script", "count"), [("--W-", 0), ("-C-", 1), ("CCC", 1), ("C-C-CC", 3), ("WWW", 1)]
)
def test_f50_divergences_are_counted_by_episode(script, count):
    watch = DivergenceWatch([Scripted(script)], DivergenceConfig(check_every=1))
    play(watch, len(script))
    assert watch.divergences == count


def test_immediate_monitors_are_asked_at_every_step_and_the_worst_comes_first():
    monitors = [Scripted("W" * 9, "slow"), Scripted("---C", "fast", every_step=True)]
    watch = DivergenceWatch(monitors, DivergenceConfig(check_every=4))
    assert play(watch, 4) == "---CW"
    assert play(watch, 4) == "---W"


def test_f69_health_falls_by_a_quarter_of_the_way_and_comes_back_by_a_twentieth():
    watch = DivergenceWatch([Scripted("CW-")], DivergenceConfig(check_every=1))
    wanted = [0.75, 0.75 + 0.25 * (0.5 - 0.75), 0.6875 + 0.05 * (1 - 0.6875)]
    for expected in wanted:
        play(watch, 1)
        assert watch.health == pytest.approx(expected)


def test_a_watch_goes_on_from_its_state():
    config = DivergenceConfig(check_every=3)
    losses = [*[1.0, 1.1] * 40, *[9.0] * 20]
    watch, heir = (DivergenceWatch(build_monitors(config), config) for _ in range(2))
    run = records(losses)
    for record in run[:50]:
        watch.observe(record)
        watch.check(record)
    heir.load_state_dict(watch.state_dict())
    for record in run[50:]:
        watch.observe(record)
        heir.observe(record)
        assert watch.check(record) == heir.check(record)
    assert watch.divergences == heir.divergences > 0


def test_monitors_are_built_from_names_and_tables():
    config = DivergenceConfig(monitors=("oscillation",), options={"oscillation": {"window": 32}})
    (monitor,) = build_monitors(config)
    assert monitor.config.window == 32
    with pytest.raises(PluginError, match="unknown monitor"):
        build_monitors(DivergenceConfig(monitors=("oscilation",)))
    with pytest.raises(ConfigError, match="windw"):
        build_monitors(DivergenceConfig(options={"oscillation": {"windw": 32}}))
    assert build_monitors(DivergenceConfig(monitors=())) == []
