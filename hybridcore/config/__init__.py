"""Configuration of a run: one attrs class per TOML table; every field changes behaviour (F55, F57)."""

from __future__ import annotations

from hybridcore.config.components import (
    ControllerConfig,
    CorrectionConfig,
    DynamicsConfig,
    KernelsConfig,
    PluginsConfig,
    PredictorConfig,
    TrackersConfig,
)
from hybridcore.config.phases import PhasesConfig
from hybridcore.config.recovery import AutotuneConfig, DivergenceConfig, RecoveryConfig
from hybridcore.config.run import CheckpointConfig, MetricsConfig, RunConfig, TaskConfig
from hybridcore.config.trials import BudgetConfig, ProbeConfig, VerdictConfig
from hybridcore.config.validators import between, choice
from hybridcore.config.weights import AverageConfig, GroupsConfig, HistoryConfig, MemoryConfig
from hybridcore.config.whole import HybridConfig

__all__ = [
    "AutotuneConfig",
    "AverageConfig",
    "BudgetConfig",
    "CheckpointConfig",
    "ControllerConfig",
    "CorrectionConfig",
    "DivergenceConfig",
    "DynamicsConfig",
    "GroupsConfig",
    "HistoryConfig",
    "HybridConfig",
    "KernelsConfig",
    "MemoryConfig",
    "MetricsConfig",
    "PhasesConfig",
    "PluginsConfig",
    "PredictorConfig",
    "ProbeConfig",
    "RecoveryConfig",
    "RunConfig",
    "TaskConfig",
    "TrackersConfig",
    "VerdictConfig",
    "between",
    "choice",
]
