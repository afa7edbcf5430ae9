"""What the entry point names: the hooks of this distribution."""

from __future__ import annotations

from typing import Any

from hybridcore import hookimpl

__all__ = ["hybridcore_predictors"]


@hookimpl
def hybridcore_predictors() -> list[type[Any]]:
    """Register `nowcast`."""
    from hybridcore_nowcast.predictor import Nowcast

    return [Nowcast]
