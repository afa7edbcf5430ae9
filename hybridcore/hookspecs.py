"""Hooks that a plugin may implement; each returns classes, and a run makes its own instances of them."""

from __future__ import annotations

from typing import Any

import pluggy

__all__ = ["hookimpl", "hookspec"]

PROJECT = "hybridcore"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def hybridcore_predictors() -> list[type[Any]]:
    """Return predictor classes."""
    raise AssertionError


@hookspec
def hybridcore_controllers() -> list[type[Any]]:
    """Return controller classes."""
    raise AssertionError


@hookspec
def hybridcore_tasks() -> list[type[Any]]:
    """Return task classes."""
    raise AssertionError


@hookspec
def hybridcore_trackers() -> list[type[Any]]:
    """Return tracker classes."""
    raise AssertionError
