"""Runs the monitors over real steps: check interval, escalation, counts, health (F32, F35, F36, F50)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from hybridcore.config import DivergenceConfig
from hybridcore.containment import Containment, Member
from hybridcore.protocols import Monitor, Signal, SignalLevel, StepRecord
from hybridcore.replies import check_signal

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["DivergenceWatch", "build_monitors"]

_PENALTY = {None: 0.0, SignalLevel.CAUTION: 0.1, SignalLevel.WARNING: 0.5, SignalLevel.CRITICAL: 1.0}
_FALL, _RISE = 0.25, 0.05


def build_monitors(config: DivergenceConfig, registry: Registry | None = None) -> list[Monitor]:
    """Instances of the monitors that the configuration names, in its order.

    Args:
        config: Names and the monitors' own tables.
        registry: Where names are looked up; all plugins that are installed if None.

    Raises:
        PluginError: A name is unknown.
        ConfigError: A monitor's own table is wrong.
    """
    from hybridcore.components import build_component
    from hybridcore.plugins import load_registry

    if not config.monitors:
        return []
    registry = registry or load_registry()
    return [
        build_component(registry.get("monitor", name), config.options.get(name, {}), f"divergence.{name}")
        for name in config.monitors
    ]


class DivergenceWatch:
    """Lets each monitor see every real step, and asks them at intervals.

    A monitor that warns at `escalate_after` checks in a row makes the last of these warnings critical (F35).

    Args:
        monitors: Who watches.
        config: Interval and escalation.
        containment: Calls the monitors; one that fails watches no more.

    Attributes:
        checks: Checks so far; ``ceil(steps / check_every)`` once `finish` was called (F36).
        divergences: Critical signals so far; those of one monitor at checks in a row count once (F50).
        health: In [0, 1]; 1 after a long time without signals. Each check moves it towards 0.9 (a caution),
            0.5 (a warning) or 0 (critical) by a quarter of the way, or back by a twentieth.

    Example:
        >>> from hybridcore.monitors.non_finite import NonFinite
        >>> from hybridcore.protocols import Phase
        >>> watch = DivergenceWatch([NonFinite()], DivergenceConfig())
        >>> record = StepRecord(1, Phase.FULL, float("inf"), 1.0, 0.1, 0.01)
        >>> watch.observe(record)
        >>> [signal.name for signal in watch.check(record)], watch.divergences
        (['non-finite'], 1)
    """

    def __init__(
        self,
        monitors: Iterable[Monitor],
        config: DivergenceConfig,
        containment: Containment | None = None,
    ) -> None:
        self._config = config
        self._containment = containment if containment is not None else Containment()
        self._containment.substitute["monitor"] = self._drop
        self._set(list(monitors))
        self._warnings: dict[str, int] = {}
        self._rows: dict[str, int] = {}
        self._diverging: set[str] = set()
        self._since = 0
        self.checks = self.divergences = 0
        self.health = 1.0

    def _set(self, monitors: list[Monitor]) -> None:
        self.monitors = monitors
        self._immediate = [m for m in monitors if getattr(m, "every_step", False)]
        self._others = [m for m in monitors if m not in self._immediate]
        self._observers: list[Member] = [
            ("monitor", m.name, m.observe) for m in (*self._others, *self._immediate)
        ]

    def _drop(self, name: str) -> None:
        self._set([m for m in self.monitors if m.name != name])
        self._rows.pop(name, None)
        self._warnings.pop(name, None)
        self._diverging.discard(name)

    def observe(self, record: StepRecord) -> None:
        """Show one real step to every monitor."""
        self._containment.each("observe", self._observers, record)
        self._since += 1

    def _ask(self, monitor: Monitor, record: StepRecord) -> Signal | None:
        """What a monitor has found; None where it fails."""
        check = monitor.check
        return self._containment.call(
            "monitor", monitor.name, "check", check, record, otherwise=None, check=check_signal
        )

    def check(self, record: StepRecord) -> list[Signal]:
        """Signals that are due after this step, the worst first.

        A caution that a monitor repeats at the next check is left out.
        """
        found: list[Signal] = []
        for monitor in self._immediate:
            signal = self._ask(monitor, record)
            if signal is not None or monitor.name in self._rows:
                self._judge(monitor.name, signal, found)
        if self._since >= self._config.check_every:
            self._round(record, found)
        elif found:
            self._feel(found[0].level)
        if len(found) > 1:
            found.sort(key=lambda signal: -signal.level)
        return found

    def finish(self, record: StepRecord | None) -> list[Signal]:
        """The check of the steps since the last one, where there are any."""
        found: list[Signal] = []
        if record is not None and self._since:
            self._round(record, found)
            found.sort(key=lambda signal: -signal.level)
        return found

    def _round(self, record: StepRecord, found: list[Signal]) -> None:
        self.checks += 1
        self._since = 0
        for monitor in self._others:
            self._judge(monitor.name, self._ask(monitor, record), found)
        self._feel(max((signal.level for signal in found), default=None))

    def _judge(self, name: str, signal: Signal | None, found: list[Signal]) -> None:
        """Escalate, count, and add the signal to those found."""
        if signal is None:
            if name in self._rows:
                del self._rows[name]
                self._warnings.pop(name, None)
                self._diverging.discard(name)
            return
        row = self._rows[name] = self._rows.get(name, 0) + 1
        if signal.level is SignalLevel.WARNING:
            self._warnings[name] = self._warnings.get(name, 0) + 1
            if self._warnings[name] >= self._config.escalate_after:
                signal = attrs.evolve(signal, level=SignalLevel.CRITICAL)
                self._warnings[name] = 0
        elif signal.level is SignalLevel.CAUTION:
            self._warnings.pop(name, None)
        if signal.level is SignalLevel.CRITICAL:
            self.divergences += name not in self._diverging
            self._diverging.add(name)
        if signal.level > SignalLevel.CAUTION or row == 1:
            found.append(signal)

    def _feel(self, worst: SignalLevel | None) -> None:
        aim = 1.0 - _PENALTY[worst]
        self.health += (_FALL if aim < self.health else _RISE) * (aim - self.health)

    def in_a_row(self, name: str) -> int:
        """Checks in a row, up to the latest, at which a monitor gave any signal."""
        return self._rows.get(name, 0)

    def dismiss(self, record: StepRecord) -> None:
        """Let go of what monitors have seen since the last check: its cause was undone."""
        for monitor in self.monitors:
            self._ask(monitor, record)

    def mark(self) -> dict[str, Any]:
        """What the monitors know, to go back to with `rewind`."""
        states = {m.name: self._state(m) for m in self.monitors}
        return {name: state for name, state in states.items() if state is not None}

    def _state(self, monitor: Monitor) -> dict[str, Any] | None:
        return self._containment.call(
            "monitor", monitor.name, "state_dict", monitor.state_dict, otherwise=None
        )

    def rewind(self, mark: Mapping[str, Any]) -> None:
        """Make the monitors know what they knew then; counts and health stay."""
        for monitor in self.monitors:
            name, load = monitor.name, monitor.load_state_dict
            self._containment.call("monitor", name, "load_state_dict", load, mark[name], otherwise=None)
        self._warnings.clear()

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {
            "monitors": self.mark(),
            "warnings": dict(self._warnings),
            "rows": dict(self._rows),
            "diverging": sorted(self._diverging),
            "since": self._since,
            "checks": self.checks,
            "divergences": self.divergences,
            "health": self.health,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.rewind(state["monitors"])
        self._warnings, self._rows = dict(state["warnings"]), dict(state["rows"])
        self._diverging, self._since = set(state["diverging"]), int(state["since"])
        self.checks, self.divergences = int(state["checks"]), int(state["divergences"])
        self.health = float(state["health"])
