"""Arms of a comparison: the configuration, its baseline, and the controls it has to beat (F73, F74)."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import attrs

from hybridcore.components import Classes, import_function
from hybridcore.config import HybridConfig
from hybridcore.errors import ConfigError, ConfigProblem
from hybridcore.structuring import did_you_mean

__all__ = ["ARMS", "ArmPlan", "check_arm", "plan_arm"]

ARMS = ("baseline", "hybrid", "reshuffled", "none", "frozen", "random", "lr-x2", "lr-x4", "lr-x10", "tuned")
"""All arms, in the order of tables: ``baseline`` trains without the engine; ``hybrid`` as configured;
``reshuffled`` is the baseline on the batches that would follow its own, what a time to a target owes to
chance, but for streams that repeat themselves, where it is the baseline once more;
``none``, ``frozen`` and ``random`` are the engine with a predictor that proposes nothing, zero, or a random
direction of equal norm; ``lr-x<factor>`` is the baseline at a multiple of its learning rate (any factor);
``tuned`` is the baseline at the best rate of a sweep."""

_CONTROLS = ("none", "frozen", "random")
_RATE = re.compile(r"^lr-x(?P<factor>\d+(?:\.\d+)?)$")


@attrs.frozen
class ArmPlan:
    """How an arm is run.

    Attributes:
        arm: Its name.
        config: The configuration to train with.
        engine: Whether the engine takes part.
        skip: Batches of the task's stream to pass over first.
    """

    arm: str
    config: HybridConfig
    engine: bool
    skip: int = 0


def check_arm(arm: str) -> None:
    """Check an arm's name.

    Raises:
        ConfigError: There is no such arm.
    """
    match = _RATE.match(arm)
    if arm in ARMS or (match is not None and float(match["factor"]) > 0):
        return
    problem = ConfigProblem(
        "arm",
        "unknown arm",
        got=arm,
        expected=f"one of {', '.join(ARMS)}, or lr-x<factor>",
        hint=did_you_mean(arm, ARMS),
    )
    raise ConfigError([problem], source="arms of the comparison", fix="name one of these arms")


def plan_arm(config: HybridConfig, arm: str, registry: Classes) -> ArmPlan:
    """What to run for an arm; ``tuned`` is the baseline here, its sweep is `hybridcore.tuning`'s.

    Raises:
        ConfigError: There is no such arm, or a rate arm's task has no option `learning_rate`.
    """
    check_arm(arm)
    if arm == "hybrid":
        return ArmPlan(arm, config, engine=True)
    if arm in _CONTROLS:
        return ArmPlan(arm, _with_predictor(config, arm, registry), engine=True)
    if arm == "reshuffled":
        return ArmPlan(arm, config, engine=False, skip=config.run.steps)
    match = _RATE.match(arm)
    if match is None:
        return ArmPlan(arm, config, engine=False)
    return ArmPlan(arm, scale_rate(config, float(match["factor"]), registry), engine=False)


def scale_rate(config: HybridConfig, factor: float, registry: Classes) -> HybridConfig:
    """The configuration with the task's learning rate multiplied.

    Raises:
        ConfigError: The task has no option `learning_rate`.
    """
    rate = base_rate(config, registry) * factor
    task = attrs.evolve(config.task, options={**config.task.options, "learning_rate": rate})
    return attrs.evolve(config, task=task)


def base_rate(config: HybridConfig, registry: Classes) -> float:
    """The learning rate that the task trains with: its option, or that option's default.

    Raises:
        ConfigError: The task has no option `learning_rate`.
    """
    name = config.task.name
    rate: Any = config.task.options.get("learning_rate")
    if rate is None and ":" in name:
        parameter = inspect.signature(import_function(name)).parameters.get("learning_rate")
        rate = parameter.default if parameter is not None else None
    elif rate is None and name in registry.tasks:
        fields = attrs.fields_dict(getattr(registry.tasks[name], "Config", _NoConfig))
        rate = fields["learning_rate"].default if "learning_rate" in fields else None
    if isinstance(rate, int | float) and math.isfinite(rate) and rate > 0:
        return float(rate)
    problem = ConfigProblem(
        "task.learning_rate",
        "the arm changes the learning rate, and this task has no such option with a positive default",
        hint="set task.learning_rate, or leave the lr-x and tuned arms out",
    )
    raise ConfigError([problem], source=f"task {name!r}", fix="see the line above")


@attrs.frozen
class _NoConfig:
    """Stands for the options of a task that has none."""


def _with_predictor(config: HybridConfig, name: str, registry: Classes) -> HybridConfig:
    """The same duty cycle with another predictor; a controller's portfolio is emptied of all others."""
    chosen = config.controller.name
    fields = attrs.fields_dict(getattr(registry.controllers.get(chosen), "Config", _NoConfig))
    controller = config.controller
    if "portfolio" in fields:
        own = {**controller.options.get(chosen, {}), "portfolio": []}
        controller = attrs.evolve(controller, options={**controller.options, chosen: own})
    predictor = attrs.evolve(config.predictor, name=name)
    return attrs.evolve(config, controller=controller, predictor=predictor)
