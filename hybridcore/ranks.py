"""What the processes of one run agree on, so that all of them decide alike (F71)."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hybridcore.config import HybridConfig
from hybridcore.errors import RankError
from hybridcore.kernels import ChosenKernels
from hybridcore.kernels.ranked import RankedKernels
from hybridcore.protocols import Adapter, KernelSet, RankedAdapter

__all__ = ["Ranks", "Timed"]

_FREE = ("checkpoint", "metrics", "plugins")
"""Tables that decide nothing."""


@runtime_checkable
class Timed(Protocol):
    """A controller that looks at a clock; on many processes the engine gives it one that all share.

    Attributes:
        clock: Seconds.
    """

    clock: Callable[[], float]


class Ranks:
    """Agreement among the processes that train one model; with one process everything stays what it is.

    Every number that decides something is either the same on all ranks already, or is gathered here: each
    rank then computes the same function of the same numbers in the same order, so that rounding cannot part
    them. Adapters with the capability ``"ranks"`` have agreed on losses, gradient norms, moments and probe
    losses before the engine sees them; what is left are clocks, memory, and norms of weights.

    All methods must be called by all ranks, in the same order.

    Args:
        adapter: The model.

    Attributes:
        many: Whether there is more than one process.

    Example:
        >>> from hybridcore.reference import quadratic
        >>> ranks = Ranks(quadratic(seed=0))
        >>> ranks.many, ranks.mean(2.0), ranks.least(3.0)
        (False, 2.0, 3.0)
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._ranked = (
            adapter if "ranks" in adapter.capabilities and isinstance(adapter, RankedAdapter) else None
        )
        self.many = self._ranked is not None

    def mean(self, value: float) -> float:
        """Mean over all ranks."""
        if self._ranked is None:
            return value
        return float(np.mean(self._ranked.gather_scalars([value])))

    def least(self, value: float) -> float:
        """Smallest of all ranks: the memory budget that every rank can keep."""
        if self._ranked is None:
            return value
        return float(np.min(self._ranked.gather_scalars([value])))

    def all_true(self, flag: bool) -> bool:
        """Whether it is so on every rank."""
        return self.least(float(flag)) > 0.0

    def agreed(self, value: float) -> float:
        """A number that came from the adapter: its mean, where the adapter has not agreed on it already."""
        return value if self.many else self._adapter.mean_scalar(value)

    def step_seconds(self, seconds: float) -> float:
        """Seconds of a real step for all ranks; with many, those of the step before, at no extra cost."""
        return seconds if self._ranked is None else self._ranked.step_seconds(seconds)

    def clock(self) -> float:
        """Seconds of a clock that is the same on all ranks."""
        return self.mean(time.perf_counter())

    def over_weights(self, products: Sequence[float]) -> list[float]:
        """Inner products over all weights of the model from those over this rank's buckets.

        Raises:
            RankError: Ranks that hold the same weights do not find the same numbers.
        """
        if self._ranked is None:
            return list(products)
        return RankedKernels.add_up(self._ranked, list(products))

    def kernels(self, chosen: ChosenKernels) -> KernelSet:
        """The kernels of the run, whose norms and inner products are those of the whole model.

        Where ranks have chosen different kernel sets by their clocks, all take the reference: another order
        of rounding on one rank would let the weights drift apart.
        """
        if self._ranked is None:
            return chosen
        used = [f"{choice.operation} {choice.name}" for choice in chosen.choices]
        if not self._same(used):
            chosen = ChosenKernels({})
        return RankedKernels(chosen, self._ranked)

    @property
    def sharded(self) -> bool:
        """Whether this rank holds less than the whole model."""
        return self._ranked is not None and self._ranked.copies < self._ranked.world_size

    def require_alike(self, config: HybridConfig, probe_batches: int) -> None:
        """Make sure that all ranks train one model with one configuration.

        Raises:
            RankError: Something differs; raised on every rank.
        """
        if self._ranked is None:
            return
        from hybridcore.configfile import config_to_dict

        tables = {name: table for name, table in config_to_dict(config).items() if name not in _FREE}
        tables["run"] = {key: value for key, value in tables["run"].items() if key != "directory"}
        tables["history"] = {k: v for k, v in tables["history"].items() if k != "memory_budget_mib"}
        self.require_same(
            {
                "configuration": tables,
                "model": [(p.name, p.dtype, p.group.value) for p in self._adapter.layout.params],
                "probe batches": probe_batches,
            }
        )

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Make sure that all ranks were set up alike.

        Args:
            facts: What must be the same, by a name that the error can give.

        Raises:
            RankError: Something differs; raised on every rank.
        """
        if self._ranked is None:
            return
        rows = self._ranked.gather_scalars([_digest(value) for value in facts.values()])
        differ = [name for name, same in zip(facts, (rows == rows[0]).all(axis=0), strict=True) if not same]
        if differ:
            raise RankError(
                "the processes of the run were not set up alike",
                where=", ".join(differ),
                got={name: str(facts[name])[:80] for name in differ},
                expected="the same on every rank",
                fix="give every process the same configuration, model, seed and number of probe batches",
            )

    def _same(self, value: Any) -> bool:
        assert self._ranked is not None
        rows = self._ranked.gather_scalars([_digest(value)])
        return bool((rows == rows[0]).all())


def _digest(value: Any) -> float:
    """A number that tells values apart by their text, exact in float64."""
    if isinstance(value, float) and math.isfinite(value):
        return value
    return float(int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:6], "big"))
