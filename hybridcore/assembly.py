"""The components that a configuration names, built once per run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from hybridcore.components import build_component
from hybridcore.config import HybridConfig
from hybridcore.divergence import build_monitors
from hybridcore.protocols import Controller, Corrector, Dynamics, Monitor, Predictor, Tracker

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["Parts", "build_parts", "build_trackers"]


@attrs.frozen
class Parts:
    """What `Engine` is made of beside the adapter.

    Attributes:
        controller: Chooses actions.
        predictors: By registry name; the first is the default.
        corrector: Learns from residuals.
        monitors: Watch for divergence.
        dynamics: Foretells the loss; None where the configuration names none.
    """

    controller: Controller
    predictors: dict[str, Predictor]
    corrector: Corrector
    monitors: list[Monitor]
    dynamics: Dynamics | None


def build_parts(config: HybridConfig, registry: Registry) -> Parts:
    """Build them.

    Raises:
        PluginError: A name is unknown.
        ConfigError: A component's own table is wrong.

    Example:
        >>> from hybridcore.plugins import load_registry
        >>> build_parts(HybridConfig(), load_registry()).controller.name
        'credit'
    """
    controller: Controller = build_component(
        registry.get("controller", config.controller.name),
        config.controller.options.get(config.controller.name, {}),
        f"controller.{config.controller.name}",
    )
    names = dict.fromkeys([config.predictor.name, *getattr(controller, "portfolio", ())])
    predictors = {
        name: build_component(
            registry.get("predictor", name), config.predictor.options.get(name, {}), f"predictor.{name}"
        )
        for name in names
    }
    corrector = build_component(
        registry.get("corrector", config.correction.name),
        config.correction.options.get(config.correction.name, {}),
        f"correction.{config.correction.name}",
    )
    dynamics = None
    if config.dynamics.name != "none":
        dynamics = build_component(
            registry.get("dynamics", config.dynamics.name),
            config.dynamics.options.get(config.dynamics.name, {}),
            f"dynamics.{config.dynamics.name}",
        )
    return Parts(controller, predictors, corrector, build_monitors(config.divergence, registry), dynamics)


def build_trackers(config: HybridConfig, registry: Registry) -> list[Tracker]:
    """The trackers that have a table, in its order.

    Raises:
        PluginError: A name is unknown.
        ConfigError: A tracker's own table is wrong.
    """
    return [
        build_component(registry.get("tracker", name), options, f"trackers.{name}")
        for name, options in config.trackers.options.items()
    ]
