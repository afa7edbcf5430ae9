"""Hooks that a plugin may implement; each returns classes, and a run makes its own instances of them."""

from __future__ import annotations

from typing import Any

import pluggy

__all__ = [
    "HOOKS",
    "PROJECT",
    "hookimpl",
    "hookspec",
    "hybridcore_controllers",
    "hybridcore_correctors",
    "hybridcore_dynamics",
    "hybridcore_kernels",
    "hybridcore_monitors",
    "hybridcore_predictors",
    "hybridcore_tasks",
    "hybridcore_trackers",
]

PROJECT = "hybridcore"
"""Name of the pluggy project, of the entry-point group and prefix of every hook."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def hybridcore_predictors() -> list[type[Any]]:
    """Return predictor classes."""
    raise AssertionError("a specification is never called")


@hookspec
def hybridcore_controllers() -> list[type[Any]]:
    """Return controller classes."""
    raise AssertionError("a specification is never called")


@hookspec
def hybridcore_correctors() -> list[type[Any]]:
    """Return corrector classes."""
    raise AssertionError("a specification is never called")


@hookspec
def hybridcore_dynamics() -> list[type[Any]]:
    """Return dynamics model classes."""
    raise AssertionError("a specification is never called")


@hookspec
def hybridcore_monitors() -> list[type[Any]]:
    """Return monitor classes."""
    raise AssertionError("a specification is never called")


@hookspec
def hybridcore_tasks() -> list[type[Any]]:
    """Return task classes."""
    raise AssertionError("a specification is never called")


@hookspec
def hybridcore_trackers() -> list[type[Any]]:
    """Return tracker classes."""
    raise AssertionError("a specification is never called")


@hookspec
def hybridcore_kernels() -> list[type[Any]]:
    """Return kernel set classes."""
    raise AssertionError("a specification is never called")


HOOKS = {
    "hybridcore_predictors": "predictor",
    "hybridcore_controllers": "controller",
    "hybridcore_correctors": "corrector",
    "hybridcore_dynamics": "dynamics",
    "hybridcore_monitors": "monitor",
    "hybridcore_tasks": "task",
    "hybridcore_trackers": "tracker",
    "hybridcore_kernels": "kernel",
}
"""Hook name to the kind of class that it returns."""
