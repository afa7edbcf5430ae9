"""The built-in plugin: what hybridcore itself brings, registered through the hooks that are open to all."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from hybridcore.hookspecs import hookimpl

__all__ = ["CONTROLLERS", "PREDICTORS", "TASKS", "TRACKERS"]

PREDICTORS: tuple[str, ...] = (
    "hybridcore.predictors.last_update:LastUpdate",
    "hybridcore.predictors.drift:Drift",
    "hybridcore.predictors.outer_momentum:OuterMomentum",
    "hybridcore.predictors.average:Average",
    "hybridcore.predictors.spectral:Spectral",
    "hybridcore.predictors.anderson:Anderson",
    "hybridcore.predictors.latent:Latent",
    "hybridcore.predictors.subspace_newton:SubspaceNewton",
    "hybridcore.predictors.gauss_newton:GaussNewton",
    "hybridcore.predictors.controls:NoPrediction",
    "hybridcore.predictors.controls:Frozen",
    "hybridcore.predictors.controls:RandomJump",
)
CONTROLLERS: tuple[str, ...] = (
    "hybridcore.controllers.threshold:Threshold",
    "hybridcore.controllers.fixed:Fixed",
    "hybridcore.controllers.credit:Credit",
    "hybridcore.controllers.linucb:LinUcb",
)
TASKS: tuple[str, ...] = (
    "hybridcore.tasks.quadratic:QuadraticTask",
    "hybridcore.tasks.logistic:LogisticTask",
)
TRACKERS: tuple[str, ...] = ()


def _load(paths: Iterable[str]) -> list[type[Any]]:
    classes = []
    for path in paths:
        module, _, name = path.partition(":")
        classes.append(getattr(import_module(module), name))
    return classes


@hookimpl
def hybridcore_predictors() -> list[type[Any]]:
    """Predictors of `hybridcore.predictors`."""
    return _load(PREDICTORS)


@hookimpl
def hybridcore_controllers() -> list[type[Any]]:
    """Controllers of `hybridcore.controllers`."""
    return _load(CONTROLLERS)


@hookimpl
def hybridcore_tasks() -> list[type[Any]]:
    """Tasks of `hybridcore.tasks`."""
    more: tuple[str, ...] = getattr(import_module("hybridcore.tasks"), "BUILTIN", ())
    return _load((*TASKS, *more))


@hookimpl
def hybridcore_trackers() -> list[type[Any]]:
    """Trackers of `hybridcore.trackers`."""
    return _load(TRACKERS)
