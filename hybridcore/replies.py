"""Checks of what plugins return; each raises where it must not be used (F42)."""

from __future__ import annotations

import math
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import array_api_compat
import attrs
import numpy as np

from hybridcore.errors import DeltaError, HybridCoreError, PredictionError
from hybridcore.history import norm
from hybridcore.layout import Array, Buckets, ParamGroup, ParamLayout
from hybridcore.protocols import Action, Correction, Phase, Prediction, Rollout, Signal, SignalLevel

__all__ = [
    "BucketKind",
    "bucket_kinds",
    "check_action",
    "check_correction",
    "check_rollout",
    "check_signal",
    "sound_prediction",
]

BucketKind = tuple[type, Any, Any]
"""Type, dtype and device of a bucket."""


def bucket_kinds(buckets: Buckets) -> tuple[BucketKind, ...]:
    """What buckets of a model are made of.

    Example:
        >>> [(kind.__name__, str(dtype)) for kind, dtype, _ in bucket_kinds((np.zeros(3, np.float32),))]
        [('ndarray', 'float32')]
    """
    return tuple((type(b), getattr(b, "dtype", None), _place(b)) for b in buckets)


def _place(bucket: Array) -> Any:
    """Devices of an array; where several share it, in no order, since shares may be cut differently."""
    several = getattr(bucket, "devices", None)
    return frozenset(several()) if callable(several) else getattr(bucket, "device", None)


def _in_precision(delta: Array, kind: BucketKind) -> Array:
    """A float32 array as float64, or the other way round, where the weights are; others as they are."""
    given, dtype = getattr(delta, "dtype", None), kind[1]
    plain = all(str(d).endswith(("float32", "float64")) for d in (given, dtype))
    if given == dtype or not plain or not isinstance(delta, kind[0]):
        return delta
    return array_api_compat.array_namespace(delta).astype(delta, dtype)


def sound_prediction(
    prediction: object, layout: ParamLayout, kinds: tuple[BucketKind, ...], where: str = "prediction"
) -> Prediction:
    """A prediction with plain numbers and fitting buckets; finiteness of the buckets is not looked at.

    Args:
        prediction: What a predictor returned.
        layout: The model's.
        kinds: `bucket_kinds` of its weights.
        where: Named in errors.

    Raises:
        PredictionError: It is no `Prediction`, or one of its numbers is none, or out of range.
        DeltaError: Its buckets do not fit the model's in number, type, size, kind of dtype or device (F22).
    """
    if not isinstance(prediction, Prediction):
        raise _wrong(
            "a predictor returned something else than a prediction", where, type(prediction).__name__
        )
    deltas = prediction.deltas
    if _is_sound(prediction, layout, kinds):
        return prediction
    if not isinstance(deltas, tuple | list) or not all(hasattr(d, "shape") for d in deltas):
        raise DeltaError(
            "a predicted change is not made of arrays",
            where=f"{where}.deltas",
            got=type(deltas).__name__,
            expected="a tuple of one-dimensional arrays, one per bucket",
            fix="build deltas from `history` arrays or with `layout.pack`",
        )
    deltas = tuple(deltas)
    layout.check(deltas, where=f"{where}.deltas")
    deltas = tuple(_in_precision(d, kind) for d, kind in zip(deltas, kinds, strict=True))
    for index, (found, kind) in enumerate(zip(bucket_kinds(deltas), kinds, strict=True)):
        if not issubclass(found[0], kind[0]) or found[1:] != kind[1:]:
            raise DeltaError(
                "a predicted change is of another kind of array than the weights",
                where=f"{where}.deltas[{index}]",
                got=_described(found),
                expected=_described(kind),
                fix="use the namespace `xp` that is passed in, and the dtype and device of `history` arrays",
            )
    try:
        numbers = {f: float(getattr(prediction, f)) for f in ("horizon", "confidence", "scale")}
        loss = prediction.predicted_loss
        loss = None if loss is None or not math.isfinite(loss) else float(loss)
    except Exception as error:  # whatever a float() of something strange raises
        raise _wrong("a number of a prediction is none", where, str(error)) from error
    if not 0.0 <= numbers["confidence"] <= 1.0 or not all(map(math.isfinite, numbers.values())):
        raise _wrong("a prediction carries an impossible confidence or horizon", where, str(numbers))
    return attrs.evolve(prediction, deltas=deltas, predicted_loss=loss, **numbers)


def _is_sound(prediction: Prediction, layout: ParamLayout, kinds: tuple[BucketKind, ...]) -> bool:
    """Whether all is plainly right, which it nearly always is."""
    p, sizes = prediction, layout.bucket_sizes
    if type(p.deltas) is not tuple or len(p.deltas) != len(sizes) or p.predicted_loss is not None:
        return False
    if not (type(p.scale) is type(p.horizon) is type(p.confidence) is float and 0.0 <= p.confidence <= 1.0):
        return False
    if not math.isfinite(p.scale) or not math.isfinite(p.horizon):
        return False
    for bucket, size, (kind, dtype, place) in zip(p.deltas, sizes, kinds, strict=True):
        if not issubclass(type(bucket), kind) or bucket.shape != (size,) or bucket.dtype != dtype:
            return False
        if _place(bucket) != place:
            return False
    return True


def _described(kind: BucketKind) -> str:
    return f"{kind[0].__module__}.{kind[0].__qualname__}, {kind[1]}, {kind[2]}"


def _wrong(what: str, where: str, got: str) -> PredictionError:
    return PredictionError(
        what,
        where=where,
        got=got,
        expected="a Prediction, with a confidence in [0, 1], a finite horizon and a finite scale",
        fix="correct the predictor; `PredictorContract` in hybridcore.testing shows where it goes wrong",
    )


def _require(fits: bool, what: str, got: object) -> None:
    if not fits:
        raise HybridCoreError(what, got=repr(got), fix="correct the plugin")


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral)


def _is_above_zero(value: Any) -> bool:
    return isinstance(value, Real) and float(value) > 0.0


def check_action(action: Any, predictors: Any) -> None:
    """Raise unless an action can be taken.

    Args:
        action: What a controller returned.
        predictors: Registry names of the predictors that there are.
    """
    wrong = None
    if not isinstance(action, Action):
        wrong = f"it returned {type(action).__name__}, not an Action"
    elif type(action.phase) is not Phase:
        wrong = f"it chose no phase: {action.phase!r}"
    elif not _is_whole(action.length):
        wrong = f"the length is no whole number: {action.length!r}"
    elif action.phase is not Phase.PREDICT:
        return
    elif action.predictor is not None and action.predictor not in predictors:
        wrong = f"it asks for a predictor that the engine does not have: {action.predictor!r}"
    elif not _is_finite(action.horizon):
        wrong = f"the horizon is no finite number: {action.horizon!r}"
    elif not _is_above_zero(action.longest):
        wrong = f"the longest change is no number above zero: {action.longest!r}"
    elif not _is_whole(action.settle):
        wrong = f"the steps until the verdict are no whole number: {action.settle!r}"
    elif action.judge not in ("probe", "guard"):
        wrong = f"there is no such judge: {action.judge!r}"
    if wrong is not None:
        raise HybridCoreError(wrong, where="controller", fix="correct the controller")


def check_correction(correction: object, layout: ParamLayout, xp: ModuleType) -> None:
    """Raise unless a corrector's answer is one, with finite numbers."""
    if not isinstance(correction, Correction):
        raise HybridCoreError(f"it returned {type(correction).__name__}, not a Correction")
    _require(math.isfinite(correction.scale), f"scale {correction.scale!r}", correction)
    for group, gain in correction.gains.items():
        _require(isinstance(group, ParamGroup) and math.isfinite(gain), f"gain {gain!r} of {group}", gain)
    if correction.residual is not None:
        layout.check(correction.residual, where="correction.residual")
        _require(math.isfinite(norm(correction.residual, xp)), "the residual is not finite", "residual")


def check_rollout(rollout: object, ticks: int, *, informed: bool) -> None:
    """Raise unless a forecast has `ticks` entries that are numbers, and a confidence.

    Args:
        rollout: What a dynamics model returned.
        ticks: Observations ahead.
        informed: It has observed something; before that it may say NaN.
    """
    if not isinstance(rollout, Rollout):
        raise HybridCoreError(f"it returned {type(rollout).__name__}, not a Rollout")
    for name in ("mean", "epistemic", "aleatoric", "seconds"):
        values = np.asarray(getattr(rollout, name))
        _require(values.shape == (ticks,), f"{name} has the shape {values.shape}, not ({ticks},)", name)
        _require(not informed or not np.isnan(values).any(), f"{name} is not a number", name)
    _require(0.0 <= rollout.confidence <= 1.0, f"confidence {rollout.confidence!r}", rollout.confidence)


def check_signal(signal: object) -> None:
    """Raise unless a monitor's answer is a signal or None."""
    if signal is None:
        return
    fits = isinstance(signal, Signal) and isinstance(signal.level, SignalLevel)
    _require(fits, f"it returned {type(signal).__name__}, not a Signal or None", signal)
