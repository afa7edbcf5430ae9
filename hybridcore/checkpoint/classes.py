"""Classes whose instances a checkpoint may hold; nothing else is ever built from a file."""

from __future__ import annotations

from enum import Enum
from typing import Any

from hybridcore.checkpoint.engine_state import Moment
from hybridcore.correction.compression import CompressedBuckets, LowRank
from hybridcore.correction.measurement import Measurement
from hybridcore.good_states import GoodState
from hybridcore.jumps import Jump
from hybridcore.layout import ParamGroup
from hybridcore.leaps import Shares
from hybridcore.protocols import (
    Action,
    ArrayRef,
    Correction,
    EncodedBuckets,
    Phase,
    Prediction,
    Residual,
    Situation,
    StepRecord,
)
from hybridcore.records import Evaluation
from hybridcore.trial import Point, Trial
from hybridcore.verdict import Reference

__all__ = ["CLASSES", "ENUMS", "SNAPSHOT_FIELD"]

CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        Action,
        ArrayRef,
        CompressedBuckets,
        Correction,
        EncodedBuckets,
        Evaluation,
        GoodState,
        Jump,
        LowRank,
        Measurement,
        Moment,
        Point,
        Prediction,
        Reference,
        Residual,
        Shares,
        Situation,
        StepRecord,
        Trial,
    )
}
"""attrs classes by name; their constructors do nothing but keep what they are given."""

ENUMS: dict[str, type[Enum]] = {cls.__name__: cls for cls in (ParamGroup, Phase)}
"""Enumerations by name."""

SNAPSHOT_FIELD = "snapshot"
"""Field of a class that holds an adapter's snapshot, which only the adapter can take apart."""
