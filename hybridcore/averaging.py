"""The annealed read-out: a running mean of the weights, to evaluate at any moment or to end with."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hybridcore.config import AverageConfig
from hybridcore.layout import Buckets
from hybridcore.protocols import Adapter

__all__ = ["RunningAverage"]


class RunningAverage:
    """Exponential mean of the weights whose memory grows with the run.

    Every k-th real step (`AverageConfig.every`) the weights w enter with ::

        m = min(max_memory, share * steps)
        a = max(min(1, k / m), 1 / (n + 1))
        mean <- (1 - a) * mean + a * w

    where n counts the samples since the mean began: it starts as the plain mean of few samples and never
    remembers much more than the last m real steps. At a constant learning rate such a mean lies about where
    a decay of the rate would have ended (Sandler et al., "Training trajectories, mini-batch losses and the
    curious role of the learning rate", 2023; Kaddour, "Stop wasting my time!", 2022); too long a memory
    early in a run lags behind, hence the share. Training itself is untouched.

    After a failed trial the mean begins anew from the restored weights. Keeping what it was when the trial
    opened would cost a pass over the weights and a buffer at each trial, in runs that hardly fail; after
    `restart` the mean is short, never wrong, and whole again after m real steps.

    Args:
        config: Memory and rhythm.

    Attributes:
        seconds: Host seconds spent on samples.

    Example:
        >>> from hybridcore.reference import quadratic
        >>> average, adapter = RunningAverage(AverageConfig(enabled=True, every=1)), quadratic(seed=0)
        >>> for _ in range(3):
        ...     average.after_step(adapter)
        >>> average.samples
        3
    """

    def __init__(self, config: AverageConfig) -> None:
        self._config = config
        self._mean: Buckets | None = None
        self._wait = 0
        self.steps = 0
        self.samples = 0
        self.seconds = 0.0

    @property
    def mean(self) -> Buckets | None:
        """The mean, buckets that the next sample overwrites; None before the first sample."""
        return self._mean if self.samples else None

    @property
    def rate(self) -> float:
        """Weight a of a sample taken now."""
        c = self._config
        memory = min(c.max_memory, c.share * self.steps)
        by_memory = min(1.0, c.every / memory) if memory > 0.0 else 1.0
        return max(by_memory, 1.0 / (self.samples + 1))

    @staticmethod
    def reserved_bytes(adapter: Adapter) -> int:
        """Bytes that the mean takes, with the snapshot that `in_place` needs where there is BatchNorm."""
        extra = adapter.snapshot_nbytes() if _has_statistics(adapter) else 0
        return adapter.layout.nbytes + extra

    def after_step(self, adapter: Adapter) -> None:
        """Count a real step that changed the weights; every k-th one enters the mean."""
        self.steps += 1
        self._wait += 1
        if self._wait < self._config.every:
            return
        self._wait = 0
        started = time.perf_counter()
        rate = self.rate
        if self._mean is None or rate >= 1.0:
            self._mean = adapter.read_params(self._mean)
        else:
            self._mean = adapter.add_params(self._mean, rate, 1.0 - rate)
        self.samples += 1
        self.seconds += time.perf_counter() - started

    def restart(self) -> None:
        """Begin anew at the next sample; the memory goes on growing with the run."""
        self.samples = 0
        self._wait = 0

    @contextmanager
    def in_place(self, adapter: Adapter, batches: Iterable[Any]) -> Iterator[None]:
        """Context in which the model has the mean as its weights; afterwards everything is as before.

        Before the first sample the weights stay what they are. BatchNorm statistics belong to weights and
        are estimated anew for the mean; there the whole state is put back from a snapshot, since
        statistics cannot be restored alone.

        Args:
            adapter: The model.
            batches: What normalisation statistics are estimated on.
        """
        mean = self.mean
        if mean is None:
            yield
        elif _has_statistics(adapter):
            former = adapter.snapshot()
            try:
                self._install(mean, adapter, batches)
                yield
            finally:
                adapter.restore(former)
        else:
            with adapter.weights(mean):
                yield

    def adopt(self, adapter: Adapter, batches: Iterable[Any]) -> None:
        """Give the mean to the model for good; the optimizer's state stays, the mean begins anew."""
        mean = self.mean
        if mean is not None:
            self._install(mean, adapter, batches)
            self.restart()

    @staticmethod
    def _install(mean: Buckets, adapter: Adapter, batches: Iterable[Any]) -> None:
        adapter.write_params(mean)
        if _has_statistics(adapter):
            adapter.refresh_statistics(batches)

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and arrays; the arrays are the mean's own."""
        return {
            "mean": self.mean,
            "steps": self.steps,
            "samples": self.samples,
            "wait": self._wait,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._mean = state["mean"]
        self.steps, self.samples = int(state["steps"]), int(state["samples"])
        self._wait, self.seconds = int(state["wait"]), float(state["seconds"])


def _has_statistics(adapter: Adapter) -> bool:
    return "batch-statistics" in adapter.capabilities
