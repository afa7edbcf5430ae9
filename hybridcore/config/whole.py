"""A whole configuration: all tables."""

from __future__ import annotations

import attrs

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
from hybridcore.config.weights import AverageConfig, GroupsConfig, HistoryConfig, MemoryConfig

__all__ = ["HybridConfig"]


@attrs.frozen(kw_only=True)
class HybridConfig:
    """A whole configuration; without arguments, the defaults.

    Example:
        >>> HybridConfig().phases.predict_mode
        'jump'
    """

    run: RunConfig = attrs.field(factory=RunConfig)
    task: TaskConfig = attrs.field(factory=TaskConfig)
    phases: PhasesConfig = attrs.field(factory=PhasesConfig)
    controller: ControllerConfig = attrs.field(factory=ControllerConfig)
    predictor: PredictorConfig = attrs.field(factory=PredictorConfig)
    dynamics: DynamicsConfig = attrs.field(factory=DynamicsConfig)
    correction: CorrectionConfig = attrs.field(factory=CorrectionConfig)
    probe: ProbeConfig = attrs.field(factory=ProbeConfig)
    verdict: VerdictConfig = attrs.field(factory=VerdictConfig)
    budget: BudgetConfig = attrs.field(factory=BudgetConfig)
    history: HistoryConfig = attrs.field(factory=HistoryConfig)
    groups: GroupsConfig = attrs.field(factory=GroupsConfig)
    kernels: KernelsConfig = attrs.field(factory=KernelsConfig)
    memory: MemoryConfig = attrs.field(factory=MemoryConfig)
    average: AverageConfig = attrs.field(factory=AverageConfig)
    divergence: DivergenceConfig = attrs.field(factory=DivergenceConfig)
    recovery: RecoveryConfig = attrs.field(factory=RecoveryConfig)
    autotune: AutotuneConfig = attrs.field(factory=AutotuneConfig)
    checkpoint: CheckpointConfig = attrs.field(factory=CheckpointConfig)
    metrics: MetricsConfig = attrs.field(factory=MetricsConfig)
    trackers: TrackersConfig = attrs.field(factory=TrackersConfig)
    plugins: PluginsConfig = attrs.field(factory=PluginsConfig)
