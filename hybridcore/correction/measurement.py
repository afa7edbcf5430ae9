"""A change under watch: what it was, and what the real steps after it show."""

from __future__ import annotations

import math

import attrs
import numpy as np

from hybridcore.correction.compression import CompressedBuckets, compress_buckets
from hybridcore.correction.displacement import compare_displacements, scale_groups
from hybridcore.jumps import Jump
from hybridcore.kernels.reference import REFERENCE
from hybridcore.layout import Buckets, ParamGroup
from hybridcore.protocols import Adapter, Correction, KernelSet, Prediction, Situation
from hybridcore.ranks import Ranks
from hybridcore.state import Statistics

__all__ = ["Measurement", "loss_curve", "measure_displacement"]

_FIT = 32
"""Most losses that the slope of the loss curve is fitted to, and a quarter of it the fewest."""


@attrs.define
class Measurement:
    """A change whose outcome is being watched.

    Attributes:
        situation: Where it was proposed.
        prediction: What the predictor proposed.
        correction: What the corrector made of it.
        jump: What was applied.
        deltas: Copy of the prediction's buckets.
        share: Share of the change that was applied.
        start: Weights after it; None where no displacement is measured.
        wait: Real steps to watch.
        realised: Paired loss change right after it; NaN where none was measured.
        losses: Training losses of the real steps so far.
        continuous: Whether the change is one of a row.
    """

    situation: Situation
    prediction: Prediction
    correction: Correction
    jump: Jump
    deltas: Buckets
    share: float
    start: Buckets | None
    wait: int
    realised: float = math.nan
    losses: list[float] = attrs.field(factory=list)
    continuous: bool = False


def loss_curve(statistics: Statistics, since: int) -> tuple[float, float]:
    """Level and slope per step of the training loss now: a straight line through the latest losses.

    Args:
        statistics: The losses.
        since: Real steps since the last change; older losses lie on another line.

    Returns:
        The line's value at the last loss, and its slope; the average loss and NaN where there are too few.
    """
    losses = np.array(list(statistics.losses)[-min(_FIT, max(since, 1)) :])
    if losses.size < _FIT // 4:
        return statistics.loss_ema(16), math.nan
    place = np.arange(losses.size) - (losses.size - 1) / 2.0
    slope = float(place @ losses) / float(place @ place)
    return float(losses.mean()) + slope * (losses.size - 1) / 2.0, slope


def measure_displacement(
    watched: Measurement,
    adapter: Adapter,
    rank: int,
    rng: np.random.Generator,
    ranks: Ranks,
    kernels: KernelSet = REFERENCE,
) -> tuple[dict[ParamGroup, tuple[float, float]], CompressedBuckets | None]:
    """Compare the displacement of the real steps with the predicted one, per step.

    Args:
        watched: The change, with the weights after it.
        adapter: The model.
        rank: Rank of the weight residual; 0 for none.
        rng: For the compression.
        ranks: Adds up what lies on several processes.
        kernels: For the compression.

    Returns:
        Inner products per group, and what no gain explains in low rank; nothing where the weights after the
        change were not kept. No residual of a model that is sharded: each shard would have other factors.
    """
    if watched.start is None:
        return {}, None
    layout, xp = adapter.layout, adapter.xp
    steps, per_step = len(watched.losses), watched.prediction.scale / watched.prediction.horizon
    now = adapter.read_params()
    realised = tuple((a - b) * (1.0 / steps) for a, b in zip(now, watched.start, strict=True))
    predicted = tuple(d * per_step for d in watched.deltas)
    found = compare_displacements(realised, predicted, layout, xp)
    sums = iter(ranks.over_weights([number for pair in found.values() for number in pair]))
    groups = {g: (next(sums), next(sums)) for g in found}
    if not rank or watched.continuous or ranks.sharded:
        return groups, None
    explained = {g: cross / square if square > 0.0 else 0.0 for g, (cross, square) in groups.items()}
    part = scale_groups(predicted, explained, layout, xp)
    rest = tuple(r - p for r, p in zip(realised, part, strict=True))
    return groups, compress_buckets(rest, layout, rank, xp, rng, kernels).to_host()
