"""Every sentence of the `Monitor` protocol as a test; subclass `MonitorContract` to run them."""

# ruff: noqa: D102 -- the names of the tests are their descriptions

from __future__ import annotations

import json
import math
from collections.abc import Iterable

import attrs
import pytest

from hybridcore.plugin_checks import check_class
from hybridcore.protocols import Monitor, Phase, Signal, SignalLevel, StepRecord

__all__ = ["MonitorContract", "records"]


def records(
    losses: Iterable[float],
    norms: Iterable[float] | None = None,
    *,
    expected: float = math.nan,
    start: int = 0,
) -> list[StepRecord]:
    """Step records with these losses and gradient norms (1.0 where none are given).

    Example:
        >>> [record.loss for record in records([2.0, 1.0])]
        [2.0, 1.0]
    """
    values = [float(loss) for loss in losses]
    sizes = [1.0] * len(values) if norms is None else [float(norm) for norm in norms]
    return [
        StepRecord(start + i, Phase.FULL, loss, norm, 0.1, 0.01, expected)
        for i, (loss, norm) in enumerate(zip(values, sizes, strict=True), 1)
    ]


class MonitorContract:
    """Base class of tests; a subclass says how to make the monitor and what must and must not alarm it.

    Attributes:
        level: Level that `alarming` must reach.

    Example:
        >>> class TestMine(MonitorContract):
        ...     def make(self):
        ...         return Mine()
        ...     def calm(self):
        ...         return records([1.0] * 100)
        ...     def alarming(self):
        ...         return records([1.0] * 100 + [9.0] * 20)
    """

    level = SignalLevel.WARNING

    def make(self) -> Monitor:
        """A new monitor."""
        raise NotImplementedError

    def calm(self) -> list[StepRecord]:
        """A healthy run."""
        raise NotImplementedError

    def alarming(self) -> list[StepRecord]:
        """A run that ends in what the monitor is there to find."""
        raise NotImplementedError

    def signals(self, monitor: Monitor, run: Iterable[StepRecord]) -> list[Signal | None]:
        """What each check after each step says."""
        found = []
        for record in run:
            monitor.observe(record)
            found.append(monitor.check(record))
        return found

    def test_keeps_the_protocol(self) -> None:
        monitor = self.make()
        assert isinstance(monitor, Monitor)
        check_class("monitor", type(monitor), "contract")

    def test_calm_run_gives_no_signal(self) -> None:
        assert not any(self.signals(self.make(), self.calm()))

    def test_alarm_is_raised_with_a_value_and_its_limit(self) -> None:
        found = [s for s in self.signals(self.make(), self.alarming()) if s is not None]
        assert max(s.level for s in found) == self.level
        for signal in found:
            assert signal.name == self.make().name
            assert not math.isnan(signal.limit)

    def test_checks_at_intervals_find_it_too(self) -> None:
        monitor, found = self.make(), []
        run = self.alarming()
        for index, record in enumerate(run, 1):
            monitor.observe(record)
            if index % 7 == 0 or index == len(run):
                found.append(monitor.check(record))
        assert any(found)

    def test_reset_forgets(self) -> None:
        used = self.make()
        self.signals(used, self.alarming())
        used.reset()
        assert self.signals(used, self.alarming()) == self.signals(self.make(), self.alarming())

    def test_state_is_plain_data_and_makes_an_heir(self) -> None:
        run = self.alarming()
        for cut in (0, 1, len(run) // 2, len(run) - 1):
            monitor, heir = self.make(), self.make()
            self.signals(monitor, run[:cut])
            heir.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
            assert self.signals(heir, run[cut:]) == self.signals(monitor, run[cut:])

    def test_reading_the_state_changes_nothing(self) -> None:
        read, unread = self.make(), self.make()
        for record in self.alarming():
            read.observe(record)
            unread.observe(record)
            read.state_dict()
            assert read.check(record) == unread.check(record)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_non_finite_numbers_leave_no_trace(self, bad: float) -> None:
        marred, clean = self.make(), self.make()
        run = self.alarming()
        for index, record in enumerate(run):
            if index % 5 == 0:
                marred.observe(attrs.evolve(record, loss=bad, grad_norm=bad))
            marred.observe(record)
            clean.observe(record)
            assert marred.check(record) == clean.check(record)
