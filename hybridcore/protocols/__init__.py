"""What adapters, predictors, controllers and tasks must offer; the meanings are the contract.

`hybridcore.testing` turns each meaning into a test that third parties can run against their own class.
"""

from hybridcore.layout import Array, Buckets
from hybridcore.protocols.adapter import (
    Adapter,
    ArrayRef,
    CheckpointAdapter,
    ClippingAdapter,
    HostCopy,
    HostMemoryAdapter,
    MemoryAdapter,
    PeakMemoryAdapter,
    RankedAdapter,
    RateAdapter,
    ResidualAdapter,
    Snapshot,
)
from hybridcore.protocols.control import Action, Controller, Outcome
from hybridcore.protocols.correction import Correction, Corrector, Residual, Situation
from hybridcore.protocols.dynamics import Dynamics, Rollout, StepOutcome
from hybridcore.protocols.kernels import EncodedBuckets, Ensemble, KernelSet, RolloutSizes, Runs, UsesKernels
from hybridcore.protocols.monitor import Monitor, Signal, SignalLevel
from hybridcore.protocols.predictor import LinearisingPredictor, MeasuringPredictor, Prediction, Predictor
from hybridcore.protocols.run import Framework, OptimizerSpec, Problem, Task, TaskRun, Tracker
from hybridcore.protocols.steps import API_VERSION, Phase, StepRecord, StepResult

__all__ = [
    "API_VERSION",
    "Action",
    "Adapter",
    "Array",
    "ArrayRef",
    "Buckets",
    "CheckpointAdapter",
    "ClippingAdapter",
    "Controller",
    "Correction",
    "Corrector",
    "Dynamics",
    "EncodedBuckets",
    "Ensemble",
    "Framework",
    "HostCopy",
    "HostMemoryAdapter",
    "KernelSet",
    "LinearisingPredictor",
    "MeasuringPredictor",
    "MemoryAdapter",
    "Monitor",
    "OptimizerSpec",
    "Outcome",
    "PeakMemoryAdapter",
    "Phase",
    "Prediction",
    "Predictor",
    "Problem",
    "RankedAdapter",
    "RateAdapter",
    "Residual",
    "ResidualAdapter",
    "Rollout",
    "RolloutSizes",
    "Runs",
    "Signal",
    "SignalLevel",
    "Situation",
    "Snapshot",
    "StepOutcome",
    "StepRecord",
    "StepResult",
    "Task",
    "TaskRun",
    "Tracker",
    "UsesKernels",
]
