"""What the entry point names: the hooks of this distribution."""

from __future__ import annotations

from typing import Any

from hybridcore import hookimpl


@hookimpl
def hybridcore_predictors() -> list[type[Any]]:
    """Register `ema-drift`."""
    from hybridcore_example_predictor.ema_drift import EmaDrift

    return [EmaDrift]
