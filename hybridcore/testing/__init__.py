"""Contracts and fixtures that third parties can run against their own plugins."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "AdapterContract": "hybridcore.testing.adapter_contract",
    "AdapterFixture": "hybridcore.testing.adapter_contract",
    "Backend": "hybridcore.testing.backends",
    "CorrectorContract": "hybridcore.testing.corrector_contract",
    "DynamicsContract": "hybridcore.testing.dynamics_contract",
    "MonitorContract": "hybridcore.testing.monitor_contract",
    "PredictorContract": "hybridcore.testing.predictor_contract",
    "TrajectoryAdapter": "hybridcore.testing.trajectories",
    "synthetic_history": "hybridcore.testing.trajectories",
    "without_clock": "hybridcore.testing.records",
}

if TYPE_CHECKING:
    from hybridcore.testing.adapter_contract import AdapterContract, AdapterFixture
    from hybridcore.testing.backends import Backend
    from hybridcore.testing.corrector_contract import CorrectorContract
    from hybridcore.testing.dynamics_contract import DynamicsContract
    from hybridcore.testing.monitor_contract import MonitorContract
    from hybridcore.testing.predictor_contract import PredictorContract
    from hybridcore.testing.records import without_clock
    from hybridcore.testing.trajectories import TrajectoryAdapter, synthetic_history

__all__ = [
    "AdapterContract",
    "AdapterFixture",
    "Backend",
    "CorrectorContract",
    "DynamicsContract",
    "MonitorContract",
    "PredictorContract",
    "TrajectoryAdapter",
    "synthetic_history",
    "without_clock",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hybridcore.testing' has no attribute {name!r}")
