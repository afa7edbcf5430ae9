"""Making a proposed change safe and applying it: finiteness and caps per group (F86)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType

import attrs

from hybridcore.config import GroupsConfig
from hybridcore.errors import DeltaError, PredictionError
from hybridcore.kernels.reference import REFERENCE
from hybridcore.layout import Buckets, ParamGroup, ParamLayout
from hybridcore.protocols import Adapter, KernelSet, Prediction
from hybridcore.replies import BucketKind, bucket_kinds

__all__ = ["Jump", "JumpLimiter"]


@attrs.define
class Jump:
    """A change that passed the limits.

    Attributes:
        deltas: The proposed buckets.
        scale: Multiplier common to all groups.
        groups: Multiplier per group, caps included.
        horizon: Optimizer steps it is worth, after the caps.
        confidence: The predictor's.
        relative: Norm of the whole change over the norm of the weights.
        capped: Groups that were shortened.
        asked: Optimizer steps it was asked to be worth, before the caps.
        longest: Cap on `relative` that its trial opened with.
        shortened: What is left of it by that cap; 1 where it was short enough.
        size: Norm of the proposed change before all scales and caps; 0 where nobody measured it.
    """

    deltas: Buckets
    scale: float
    groups: dict[ParamGroup, float]
    horizon: float
    confidence: float
    relative: float
    capped: tuple[ParamGroup, ...]
    asked: float
    longest: float = math.inf
    shortened: float = 1.0
    size: float = 0.0

    def apply(self, adapter: Adapter, share: float = 1.0) -> None:
        """Add `share` of the change to the weights."""
        adapter.apply_delta(self.deltas, self.scale * share, self.groups)


class JumpLimiter:
    """Checks predictions and caps their length per group of parameters.

    Args:
        layout: The model's layout.
        xp: Array namespace of the buckets.
        config: Scales and the cap.
        kernels: Who takes the norms.

    Attributes:
        weight_norms: Norm of the weights by group, as the last trial's first change found them; empty before
            it, and after `forget_weights`.
        kinds: Type, dtype and device of each bucket of weights, as measured last.
    """

    def __init__(
        self, layout: ParamLayout, xp: ModuleType, config: GroupsConfig, kernels: KernelSet = REFERENCE
    ) -> None:
        self._layout, self._xp, self._config, self._kernels = layout, xp, config, kernels
        self._slices = layout.group_slices()
        self._scales = {
            ParamGroup.MATRIX: config.matrix_scale,
            ParamGroup.EMBEDDING: config.embedding_scale,
            ParamGroup.NORM: config.norm_scale,
            ParamGroup.BIAS: config.bias_scale,
        }
        self.weight_norms: dict[ParamGroup, float] = {}
        self.kinds: tuple[BucketKind, ...] = ()

    def forget_weights(self) -> None:
        """A trial opens: the next change is held against the weights as they are then."""
        self.weight_norms = {}

    def note_kinds(self, weights: Buckets) -> tuple[BucketKind, ...]:
        """Note, and give, what the weights' buckets are made of."""
        self.kinds = bucket_kinds(weights)
        return self.kinds

    def limit(
        self,
        prediction: Prediction,
        adapter: Adapter,
        gains: Mapping[ParamGroup, float] | None = None,
        *,
        longest: float = math.inf,
        repetition: bool = False,
    ) -> Jump:
        """Check a prediction and cap it.

        Groups without weights of their own size yet (norm zero) are capped by the whole model's norm.

        Args:
            prediction: What a predictor proposed.
            adapter: The model.
            gains: A corrector's multiplier per group, applied before the caps; missing groups count 1.0.
            longest: Cap on the norm of the whole change over that of the weights.
            repetition: Whether such a change follows every step of the trial, which has a cap of its own.

        Returns:
            The jump; its `groups` hold every scale and cap.

        Raises:
            DeltaError: It does not fit the layout or is not finite; nothing was applied (F22).
            PredictionError: Its confidence or horizon is not a number in range.
        """
        self._layout.check(prediction.deltas, where="prediction.deltas")
        if not 0.0 <= prediction.confidence <= 1.0 or not math.isfinite(prediction.horizon):
            raise PredictionError(
                "a prediction carries an impossible confidence or horizon",
                where="prediction",
                got=f"confidence {prediction.confidence}, horizon {prediction.horizon}",
                expected="confidence in [0, 1] and a finite horizon",
                fix="correct the predictor",
            )
        lengths = self._measure(prediction.deltas, adapter)
        if not all(map(math.isfinite, lengths.values())) or not math.isfinite(prediction.scale):
            raise self._not_finite({g.value: n for g, n in lengths.items()})
        whole = math.sqrt(sum(n * n for n in self.weight_norms.values()))
        groups: dict[ParamGroup, float] = {}
        capped: list[ParamGroup] = []
        moved = wanted = 0.0
        for group, length in lengths.items():
            factor = self._scales[group] * (gains or {}).get(group, 1.0)
            size = abs(prediction.scale) * factor * length
            wanted += size * size
            limit = self._config.max_relative_jump * max(self.weight_norms.get(group, 0.0), 0.01 * whole)
            if size > limit:
                factor *= limit / size
                capped.append(group)
                size = limit
            groups[group] = factor
            moved += size * size
        relative = math.sqrt(moved) / whole if whole > 0.0 else math.sqrt(moved)
        jump = Jump(
            prediction.deltas,
            prediction.scale,
            groups,
            prediction.horizon * (math.sqrt(moved / wanted) if wanted > 0.0 else 0.0),
            prediction.confidence,
            relative,
            tuple(capped),
            prediction.horizon,
            min(longest, self._config.max_relative_repeat) if repetition else longest,
            size=abs(prediction.scale) * math.sqrt(sum(n * n for n in lengths.values())),
        )
        return self._shortened(jump)

    @staticmethod
    def _shortened(jump: Jump) -> Jump:
        """The same direction, no longer than it may be."""
        left = min(1.0, jump.longest / jump.relative) if jump.relative > 0.0 else 1.0
        if left == 1.0:
            return jump
        return attrs.evolve(
            jump,
            groups={group: left * factor for group, factor in jump.groups.items()},
            horizon=left * jump.horizon,
            relative=left * jump.relative,
            shortened=left,
        )

    def repeat(self, prediction: Prediction, like: Jump, norm: float | None) -> Jump:
        """A jump that continues a trial: the scales and caps of the trial's first jump hold.

        Where updates have grown since then, the cap on their length goes by the proposal's own norm. Where
        they are shorter it does not: a chance of small batches would let the next one go further.

        Args:
            prediction: The next proposal of the same predictor.
            like: The jump that `limit` made at the trial's opening.
            norm: Euclidean norm of the proposal's `deltas`; None takes updates to be as long as at first.

        Raises:
            DeltaError: The norm is not finite.
        """
        ratio = grown = prediction.horizon / like.asked if like.asked else 1.0
        if norm is not None:
            size = abs(prediction.scale) * norm
            if not math.isfinite(size):
                raise self._not_finite(size)
            grown = max(size / like.size, ratio) if like.size > 0.0 else ratio
        return self._shortened(
            Jump(
                prediction.deltas,
                prediction.scale,
                {group: factor / like.shortened for group, factor in like.groups.items()},
                like.horizon * ratio / like.shortened,
                prediction.confidence,
                like.relative * grown / like.shortened,
                like.capped,
                prediction.horizon,
                like.longest,
            )
        )

    @staticmethod
    def _not_finite(got: object) -> DeltaError:
        return DeltaError(
            "a predicted change is not finite",
            where="prediction.deltas",
            got=got,
            expected="finite numbers",
            fix="the predictor is reset and the jump refused; check its inputs",
        )

    def _measure(self, deltas: Buckets, adapter: Adapter) -> dict[ParamGroup, float]:
        """Norms of the change by group, and of the weights where they are not known: waited for together."""
        if self.weight_norms:
            return self._norms([deltas])[0]
        weights = adapter.read_params()
        self.note_kinds(weights)
        self.weight_norms, lengths = self._norms([weights, deltas])
        return lengths

    def _norms(self, sets: list[Buckets]) -> list[dict[ParamGroup, float]]:
        by_group = []
        for lengths in self._kernels.run_norms(sets, self._slices, self._xp):
            squares: dict[ParamGroup, float] = {}
            for (group, _, _), length in zip(self._slices, lengths, strict=True):
                squares[group] = squares.get(group, 0.0) + length * length
            by_group.append({g: math.sqrt(s) for g, s in squares.items()})
        return by_group
