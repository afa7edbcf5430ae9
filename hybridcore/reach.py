"""How far one step could reach: the horizon that the path so far supports, without any probe."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from hybridcore.alignment import Alignment
from hybridcore.history import History
from hybridcore.layout import Buckets
from hybridcore.protocols import Adapter

__all__ = ["Reach"]


class Reach:
    """Distance over gradients (DoG), measured on the optimizer's own updates.

    With real updates u_t (before any jump), distance ``r = max_t |w_t - w_0|`` from the start and a first
    moment with coefficient beta, the multiple of the user's step that the path supports is ::

        h = (1 - beta) * r / sqrt(sum_t |u_t - beta u_{t-1}|^2)

    For plain SGD, u_t = -eta g_t, and h * eta is the step size of Ivgi, Hinder and Carmon, "DoG is SGD's
    best friend: a parameter-free dynamic step size schedule" (ICML 2023), eq. (1). Taking beta times the
    last update away recovers the fresh part of a momentum update, which has no memory: for heavy ball it is
    ``-eta g_t``, for Adam about ``-eta (1 - beta) g_t / sqrt(v_t)``. Without that correction, correlated
    updates make the sum too small and the steps of Adam diverge.

    Where fresh parts grow, as on leaving a plateau, the sum of the past says too little about steps to come,
    and h would be too long just where the loss begins to fall. So the sum is never taken as less than if all
    steps had been as large as the last two samples.

    The sum is sampled: after the first steps only every `interval` steps, each sample counting for the
    steps since the one before it.

    Where steps are too short the path is straight, and h grows with the root of the steps; where they are
    right it wanders, and h stays, or falls. `growth` says which.

    Args:
        xp: Array namespace of the buckets.
        sample_share: The interval grows as this share of the steps so far.
        max_interval: Longest interval, in real steps.

    Example:
        >>> import array_api_compat.numpy as xp
        >>> math.isnan(Reach(xp).horizon)
        True
    """

    def __init__(self, xp: ModuleType, *, sample_share: float = 0.08, max_interval: int = 50) -> None:
        self._xp = xp
        self._share, self._max_interval = sample_share, max_interval
        self._origin: Buckets | None = None
        self._work: Buckets | None = None
        self._sum = 0.0
        self._recent = math.nan
        self._distance = 0.0
        self._counted = 0
        self._samples = 0
        self._past: list[tuple[int, float]] = []
        self.horizon = math.nan
        self.alignment = Alignment()

    @property
    def next_sample(self) -> int:
        """Real step whose update should be sampled next."""
        return self._counted + max(1, min(self._max_interval, int(self._share * self._counted)))

    @property
    def growth(self) -> float:
        """Exponent with which the horizon exceeds what it was at most in the middle third of the steps.

        ``log(h_t / max h_s) / log(t / s)``, s from a third of t to two thirds; a half for a straight path,
        zero or less for one that wanders. NaN while unknown.
        """
        now = self._counted
        middle = [(h, step) for step, h in self._past if step <= now / 1.5]
        if not middle or not self.horizon > 0.0:
            return math.nan
        highest, step = max(middle)
        return math.log(self.horizon / highest) / math.log(now / step)

    def start(self, adapter: Adapter) -> None:
        """Note where the path begins."""
        self._origin = adapter.read_params()

    def due(self, step: int) -> bool:
        """Whether the update of this real step should be sampled."""
        return step >= self.next_sample

    def observe(self, step: int, history: History, adapter: Adapter, *, aligned: bool = False) -> None:
        """Look at the update of the real step just taken: sample it where that is due.

        Args:
            step: Real steps so far.
            history: Gives the last two updates.
            adapter: Gives the weights and the memory of the first moment.
            aligned: Whether the alignment of every step seen is wanted.
        """
        due = self.due(step)
        if self._origin is None:
            return
        if not (due or aligned):
            if self.due(step + 1):
                history.last_update()  # the next sample needs this step's update too
            return
        update, older = history.updates()
        beta = 1.0 - 1.0 / max(adapter.momentum_memory, 1.0)
        fresh = None
        if older is not None and (beta > 0.0 or aligned):
            squared, before, shared = history.kernels.products(update, older, self._xp)
            history.note_norm(math.sqrt(max(squared, 0.0)))
            fresh = max(squared + beta * beta * before - 2.0 * beta * shared, 0.0)
            if aligned:
                self.alignment.observe(fresh, before, shared - beta * before)
        if not due:
            return
        if fresh is None:
            if beta > 0.0 and self._samples:
                return  # one update of a pair says nothing about its fresh part; the next one will
            fresh = float(history.kernels.gram([update], self._xp)[0, 0])
        elif beta > 0.0:
            fresh /= (1.0 - beta) ** 2
        self._sample(step, fresh, history, adapter)

    def _sample(self, step: int, squared: float, history: History, adapter: Adapter) -> None:
        """Count a fresh part of this squared size, and measure how far the path has come."""
        assert self._origin is not None
        if not math.isfinite(squared):
            return
        self._sum += squared * (step - self._counted)
        self._recent = squared if math.isnan(self._recent) else 0.5 * (self._recent + squared)
        self._counted = step
        self._samples += 1
        self._work = adapter.read_params(self._work)
        gap = history.kernels.distance(self._work, self._origin, self._xp)
        if math.isfinite(gap):
            self._distance = max(self._distance, gap)
        self._settle()
        self._note()

    def _note(self) -> None:
        """Remember the horizon at steps a twentieth apart, as long as `growth` needs it."""
        if not self.horizon > 0.0:
            return
        step, highest = self._past[-1] if self._past else (0, 0.0)
        if self._counted >= 1.05 * step:
            self._past.append((self._counted, self.horizon))
        else:
            self._past[-1] = (step, max(highest, self.horizon))
        self._past = [entry for entry in self._past if entry[0] >= self._counted / 3.0]

    def _settle(self) -> None:
        whole = max(self._sum, self._counted * self._recent)
        if whole > 0.0:
            self.horizon = self._distance / math.sqrt(whole)

    def state_dict(self) -> dict[str, Any]:
        """The numbers, without the origin, as plain data."""
        return {
            "sum": self._sum,
            "recent": self._recent,
            "distance": self._distance,
            "counted": self._counted,
            "samples": self._samples,
            "past": list(self._past),
            "horizon": self.horizon,
            "alignment": self.alignment.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._sum, self._distance = state["sum"], state["distance"]
        self._recent = state["recent"]
        self._counted, self._samples = state["counted"], state["samples"]
        self._past = [(int(step), float(h)) for step, h in state["past"]]
        self.horizon = state["horizon"]
        self.alignment.load_state_dict(state["alignment"])

    def whole_state(self) -> dict[str, Any]:
        """The numbers and where the path began: all that a checkpoint needs."""
        return {**self.state_dict(), "origin": self._origin}

    def load_whole_state(self, state: dict[str, Any]) -> None:
        """Put back what `whole_state` gave."""
        self.load_state_dict(state)
        self._origin = state["origin"]

    def forget_distance(self, state: dict[str, Any]) -> None:
        """After a failed trial: keep the steps counted, but take the distance from before it."""
        self._distance = state["distance"]
        self._settle()
