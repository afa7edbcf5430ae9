"""Changes that the engine makes by itself where it is allowed to: warm restarts and clipping (F69)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, cast

from hybridcore.config import AutotuneConfig
from hybridcore.divergence import DivergenceWatch
from hybridcore.events import Event
from hybridcore.protocols import Adapter, ClippingAdapter
from hybridcore.rates import RateControl
from hybridcore.reporting import Reporter

__all__ = ["Autotune", "restart_factor"]

logger = logging.getLogger("hybridcore")

_OWNER = "autotune"


def restart_factor(age: int, config: AutotuneConfig) -> float:
    """Multiple of the user's learning rate `age` real steps after a warm restart.

    ``floor + (peak - floor) (1 + cos(pi age / restart_steps)) / 2`` (Loshchilov & Hutter 2017, SGDR,
    equation 5), and the floor afterwards.

    Example:
        >>> config = AutotuneConfig(restart_factor=3.0, restart_floor=1.0, restart_steps=100)
        >>> restart_factor(0, config), restart_factor(50, config), restart_factor(100, config)
        (3.0, 2.0, 1.0)
    """
    share = min(age / config.restart_steps, 1.0)
    low, high = config.restart_floor, config.restart_factor
    return low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * share))


class Autotune:
    """Watches plateaus and health, and turns the learning rate and adaptive clipping.

    Args:
        adapter: The model.
        config: What is allowed.
        watch: Knows plateaus and health.
        rates: Changes the learning rate.
        reporter: Hears of changes.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: AutotuneConfig,
        watch: DivergenceWatch,
        rates: RateControl,
        reporter: Reporter,
    ) -> None:
        self._config, self._watch, self._rates, self._reporter = config, watch, rates, reporter
        able = "adaptive-clipping" in adapter.capabilities
        self._adapter = cast(ClippingAdapter, adapter) if able else None
        self._restarted: int | None = None
        self._clipping = False
        if config.enabled and config.restart and not rates.available:
            logger.warning("adapter %r has no capability 'learning-rate': no restarts", adapter.name)
        if config.enabled and config.clipping != "never" and not able:
            logger.warning("adapter %r has no capability 'adaptive-clipping': no clipping", adapter.name)

    def after_check(self, step: int, busy: bool) -> None:
        """Act on what the latest check found.

        Args:
            step: Real steps so far.
            busy: A trial is open; no restart begins, since the verdict compares with the rate before.
        """
        c = self._config
        if not c.enabled:
            return
        if self._adapter is not None:
            self._clip(self._adapter)
        if self._restarted is not None:
            age = step - self._restarted
            self._rates.set(_OWNER, restart_factor(age, c))
            if age >= c.restart_steps:
                self._restarted = None
        elif c.restart and self._rates.available and not busy and self._plateau():
            self._restarted = step
            self._rates.set(_OWNER, restart_factor(0, c))
            for monitor in self._watch.monitors:
                if monitor.name == "plateau":
                    monitor.reset()
            self._report("warm-restart", c.restart_factor)

    def _plateau(self) -> bool:
        c = self._config
        return self._watch.in_a_row("plateau") >= c.patience and self._watch.health >= c.min_health

    def _clip(self, adapter: ClippingAdapter) -> None:
        c = self._config
        unwell = c.clipping == "unhealthy" and self._watch.health < c.clip_health
        wanted = c.clipping == "always" or unwell
        if wanted is not self._clipping:
            self._clipping = wanted
            adapter.clip_adaptively(c.clip_ratio if wanted else None)
            self._report("clipping" if wanted else "no-clipping", c.clip_ratio)

    def _report(self, change: str, value: float) -> None:
        health = self._watch.health
        self._reporter.trace("tuning: %s at %.3g, health %.2f", change, value, health)
        self._reporter.emit(Event.TUNING, change=change, value=value, health=health)

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {"restarted": self._restarted, "clipping": self._clipping}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave; clipping is switched as it was then."""
        self._restarted, self._clipping = state["restarted"], bool(state["clipping"])
        if self._adapter is not None:
            self._adapter.clip_adaptively(self._config.clip_ratio if self._clipping else None)
