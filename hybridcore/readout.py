"""Which weights a run is read out by: its own, or their running mean."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from hybridcore.averaging import RunningAverage
from hybridcore.checkpoint.attributes import put, take
from hybridcore.config import AverageConfig
from hybridcore.counts import Counts
from hybridcore.probes import FORWARD_COST
from hybridcore.protocols import Adapter

__all__ = ["ReadOut"]

_STATE = ("averaged", "cost", "seconds", "_decided_at")


class ReadOut:
    """Chooses between the weights and their running mean by the loss of held-out examples.

    At a constant learning rate the mean is mostly the better one; where weights still travel far it lags
    behind. The two are compared on one held-out batch, at the first evaluation that has a mean and then where
    the run is `AverageConfig.decide_growth` times as long as at the last decision, so that a run of n steps
    pays for about ``log(n)`` of these comparisons.

    Args:
        config: How often to decide.
        adapter: The model.
        average: The running mean.
        batches: Gives the held-out batches; the first one decides.
        counts: Counts the real steps.
        examples: Gives the examples of a real step, the unit of costs.

    Attributes:
        averaged: Whether the run is read out by the mean.
        cost: What the decisions cost so far, in real steps; no part of the run's own cost.
        seconds: What they took, in seconds.

    Example:
        >>> from hybridcore.reference import quadratic
        >>> average, adapter, counts = RunningAverage(AverageConfig(every=1)), quadratic(seed=0), Counts()
        >>> read_out = ReadOut(AverageConfig(), adapter, average, lambda: [], counts, lambda: 0)
        >>> read_out.decide()
        False
    """

    def __init__(
        self,
        config: AverageConfig,
        adapter: Adapter,
        average: RunningAverage,
        batches: Callable[[], Sequence[Any]],
        counts: Counts,
        examples: Callable[[], int],
    ) -> None:
        self._config, self._adapter, self._average = config, adapter, average
        self._batches, self._counts, self._examples = batches, counts, examples
        self._decided_at = 0
        self.averaged = False
        self.cost = self.seconds = 0.0

    def decide(self, *, anew: bool = False) -> bool:
        """Decide where that is due, and say what holds.

        Args:
            anew: Decide also where it is not due, as at the end of a run.

        Returns:
            Whether the run is read out by the mean.
        """
        batches, now = self._batches(), self._counts.real_steps
        due = anew or now >= self._config.decide_growth * self._decided_at
        if due and batches and self._average.mean is not None:
            started = time.perf_counter()
            own = self._loss(batches[0])
            with self._average.in_place(self._adapter, batches):
                mean = self._loss(batches[0])
            self.averaged = mean < own or (math.isfinite(mean) and not math.isfinite(own))
            self._decided_at = now
            self.seconds += time.perf_counter() - started
        return self.averaged

    def _loss(self, batch: Any) -> float:
        losses = np.asarray(self._adapter.probe_loss(batch), dtype=np.float64)
        self.cost += FORWARD_COST * losses.size / (self._examples() or max(losses.size, 1))
        return float(losses.mean())

    @contextmanager
    def in_place(self, *, anew: bool = False) -> Iterator[bool]:
        """Context in which the model has the weights that were decided for; gives whether they are the mean.

        Args:
            anew: See `decide`.
        """
        if not self.decide(anew=anew):
            yield False
            return
        with self._average.in_place(self._adapter, self._batches()):
            yield True

    def summary(self) -> dict[str, Any]:
        """What holds, and what deciding took, for the run's summary."""
        chosen = "average" if self.averaged else "weights"
        return {"read_out": chosen, "read_out_cost": self.cost, "read_out_seconds": self.seconds}

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return take(self, _STATE)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        put(self, _STATE, state)
