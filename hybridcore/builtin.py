"""The built-in plugin: what hybridcore itself brings, registered through the hooks that are open to all."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from hybridcore.hookspecs import hookimpl

__all__ = ["CONTROLLERS", "CORRECTORS", "DYNAMICS", "KERNELS", "MONITORS", "PREDICTORS", "TASKS", "TRACKERS"]

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
CORRECTORS: tuple[str, ...] = (
    "hybridcore.correction.none:NoCorrection",
    "hybridcore.correction.loss_level:LossLevel",
    "hybridcore.correction.gains:Gains",
)
DYNAMICS: tuple[str, ...] = (
    "hybridcore.dynamics.linear:Linear",
    "hybridcore.dynamics.mlp:Mlp",
    "hybridcore.dynamics.rssm:Rssm",
)
MONITORS: tuple[str, ...] = (
    "hybridcore.monitors.non_finite:NonFinite",
    "hybridcore.monitors.loss_deviation:LossDeviation",
    "hybridcore.monitors.gradient_norm:GradientNorm",
    "hybridcore.monitors.prediction_error:PredictionError",
    "hybridcore.monitors.oscillation:Oscillation",
    "hybridcore.monitors.plateau:Plateau",
)
TASKS: tuple[str, ...] = (
    "hybridcore.tasks.quadratic:QuadraticTask",
    "hybridcore.tasks.logistic:LogisticTask",
)
TRACKERS: tuple[str, ...] = ("hybridcore.trackers.tensorboard:TensorBoard",)
KERNELS: tuple[str, ...] = ("hybridcore.kernels.reference:ReferenceKernels",)


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
def hybridcore_correctors() -> list[type[Any]]:
    """Correctors of `hybridcore.correction`."""
    return _load(CORRECTORS)


@hookimpl
def hybridcore_dynamics() -> list[type[Any]]:
    """Dynamics models of `hybridcore.dynamics`."""
    return _load(DYNAMICS)


@hookimpl
def hybridcore_monitors() -> list[type[Any]]:
    """Monitors of `hybridcore.monitors`."""
    return _load(MONITORS)


@hookimpl
def hybridcore_tasks() -> list[type[Any]]:
    """Tasks of `hybridcore.tasks`."""
    more: tuple[str, ...] = getattr(import_module("hybridcore.tasks"), "BUILTIN", ())
    return _load((*TASKS, *more))


@hookimpl
def hybridcore_trackers() -> list[type[Any]]:
    """Trackers of `hybridcore.trackers`."""
    return _load(TRACKERS)


@hookimpl
def hybridcore_kernels() -> list[type[Any]]:
    """Kernel sets of `hybridcore.kernels`."""
    return _load(KERNELS)
