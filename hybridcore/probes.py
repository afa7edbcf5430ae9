"""Forward-only losses on held-out examples, and paired comparisons of them (F81)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.checkpoint.attributes import put, take
from hybridcore.errors import ProbeError
from hybridcore.layout import Buckets
from hybridcore.protocols import Adapter, ResidualAdapter

__all__ = ["PairedDifference", "ProbeSet", "paired_difference"]

_STATE = ("cost", "count", "_n_examples")

FORWARD_COST = 1.0 / 3.0
"""Cost of a forward pass in units of a real step on as many examples."""


@attrs.frozen(slots=True)
class PairedDifference:
    """Mean of per-example differences and its standard error.

    Attributes:
        mean: Mean difference; for losses, negative is an improvement.
        error: Standard error of the mean; 0 for a single example.
        n: Examples.
    """

    mean: float
    error: float
    n: int


def paired_difference(after: NDArray[np.float64], before: NDArray[np.float64]) -> PairedDifference:
    """Mean and standard error of ``after - before`` over shared examples.

    The error is ``s / sqrt(n)`` with the sample deviation s of the differences (paired t statistic).

    Args:
        after: Per-example losses, shape (n,).
        before: Losses of the same examples, shape (n,).

    Raises:
        ProbeError: The two do not hold the same examples.

    Example:
        >>> paired_difference(np.array([1.0, 2.0]), np.array([2.0, 2.0])).mean
        -0.5
    """
    if after.shape != before.shape or after.ndim != 1:
        raise ProbeError(
            "two probes do not share their examples",
            where="probe",
            got=f"{after.shape} and {before.shape}",
            expected="two arrays of one shape (n,)",
            fix="probe both with the same batches",
        )
    difference = after - before
    n = int(difference.size)
    error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return PairedDifference(float(difference.mean()), error, n)


class ProbeSet:
    """Held-out batches and what it costs to read them.

    Args:
        batches: The held-out batches, also an endless iterator; where empty, `remember` fills the set.
        limit: Most batches used.

    Attributes:
        cost: Cost units spent on probes so far.
        count: Probes so far.
    """

    def __init__(self, batches: Iterable[Any], limit: int) -> None:
        self._batches: list[Any] = list(itertools.islice(batches, limit))
        self._remembers = not self._batches
        self._limit = limit if not self._batches else len(self._batches)
        self.cost = 0.0
        self.count = 0
        self._n_examples = 0

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def batches(self) -> tuple[Any, ...]:
        """The batches."""
        return tuple(self._batches)

    def remember(self, batch: Any) -> None:
        """Keep a training batch where the host gave no held-out ones, until the limit is reached."""
        if len(self._batches) < self._limit:
            self._batches.append(batch)

    @property
    def complete(self) -> bool:
        """Whether there is nothing to remember: the host gave batches, or the limit is reached."""
        return len(self._batches) >= self._limit

    def evaluate(self, adapter: Adapter, weights: Buckets | None = None) -> NDArray[np.float64]:
        """Per-example losses of all batches, shape (n,).

        Args:
            adapter: The model.
            weights: Weights to evaluate instead of the current ones; the current ones are back afterwards.

        Raises:
            ProbeError: There are no batches, no examples, or a batch gives something else than (n,).
        """
        if not self._batches:
            raise ProbeError(
                "the probe set is empty",
                where="probe",
                expected="one or more held-out batches",
                fix="pass probe=[batch, ...] of held-out examples, or train a batch first",
            )
        if weights is None:
            parts = [self._losses(adapter, i, b) for i, b in enumerate(self._batches)]
        else:
            with adapter.weights(weights):
                parts = [self._losses(adapter, i, b) for i, b in enumerate(self._batches)]
        losses = np.concatenate(parts)
        self.count += 1
        self._n_examples = int(losses.size)
        return losses

    def linearise(
        self, adapter: Adapter, directions: Sequence[Buckets]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Residuals (n,) of all batches and their derivatives (n, k) along k changes of the weights.

        Args:
            adapter: A model with the capability ``"residuals"``.
            directions: The changes.
        """
        assert isinstance(adapter, ResidualAdapter)
        parts = [adapter.linearise_residuals(batch, directions) for batch in self._batches]
        residuals = np.concatenate([residual for residual, _ in parts])
        self.count += 1
        self._n_examples = int(residuals.size)
        return residuals, np.concatenate([products for _, products in parts])

    def charge(self, examples_per_step: int, forwards: float = 1.0) -> float:
        """Book one probe and give its cost in units of a real step.

        Args:
            examples_per_step: Examples of a real step.
            forwards: Forward passes that it takes.
        """
        per_step = examples_per_step if examples_per_step > 0 else self._n_examples / max(len(self), 1)
        cost = FORWARD_COST * forwards * self._n_examples / max(per_step, 1.0)
        self.cost += cost
        return cost

    def state_dict(self) -> dict[str, Any]:
        """Counts, and the batches where they were remembered."""
        return {**take(self, _STATE), "remembered": list(self._batches) if self._remembers else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        put(self, _STATE, state)
        if state["remembered"] is not None:
            self._batches = list(state["remembered"])

    def _losses(self, adapter: Adapter, index: int, batch: Any) -> NDArray[np.float64]:
        losses: Sequence[Any] | NDArray[np.float64] = adapter.probe_loss(batch)
        array = np.asarray(losses, dtype=np.float64)
        if array.ndim != 1 or array.size == 0:
            raise ProbeError(
                "a probe batch does not give one loss per example",
                where=f"probe batch {index}",
                got=f"shape {array.shape}",
                expected="shape (n,) with n >= 1",
                fix="let loss_fn(model, batch) return unreduced losses, one per example",
            )
        return array
