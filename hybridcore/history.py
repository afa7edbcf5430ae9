"""What is remembered of the weights: the last update, window means and the straightness of the path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from hybridcore.checkpoint.attributes import put, take
from hybridcore.config import HistoryConfig
from hybridcore.errors import MemoryBudgetError, PredictionError
from hybridcore.kernels.encoding import encoded_bytes
from hybridcore.kernels.ranked import RankedKernels
from hybridcore.kernels.reference import REFERENCE
from hybridcore.layout import Buckets, ParamLayout
from hybridcore.memory import Memory, budget_bytes
from hybridcore.protocols import Adapter, KernelSet
from hybridcore.window_means import WindowMeans

__all__ = ["NEEDS", "History", "dot", "norm"]

NEEDS = frozenset({"last-update", "window-means", "straightness", "reach", "alignment"})
"""Words that a component's ``needs`` may hold."""

MIB = 2**20

_STATE = (
    "windows",
    "budget_bytes",
    "active",
    "_reserved",
    "_recent",
    "_recent_is",
    "_older",
    "_older_is_update",
    "_sum",
    "_count",
    "_closed",
    "_last_end",
    "_displacement",
    "_end_count",
    "_straightness",
    "_averaging",
)


def dot(a: Buckets, b: Buckets, xp: ModuleType) -> float:
    """Inner product of two sets of buckets, as a Python float (`matmul` is the quickest on every backend)."""
    return sum(float(xp.matmul(x, y)) for x, y in zip(a, b, strict=True))


def norm(a: Buckets, xp: ModuleType) -> float:
    """Euclidean norm of buckets, as a Python float."""
    return math.sqrt(dot(a, a, xp))


class History:
    """Running memory of a trajectory, at most one pass over the weights per real step.

    Kept, each only if asked for: the weights before the last real step (``"last-update"``), the means of
    the last `window` steps (``"window-means"``), and the displacements between window ends
    (``"straightness"``).

    Args:
        layout: Layout of the buckets.
        xp: Their array namespace.
        config: Window length, number of windows, memory budget.
        needs: Subset of `NEEDS`.
        reserved: Bytes of the budget that others use (snapshots).
        windows: Window means that a component wants, where that is more than the configuration's.
        kernels: Who does the arithmetic.
        budget: Bytes of the budget; `hybridcore.memory.budget_bytes` of the host if None.
        least: Smallest of a number over all processes of the run.
        memory: Where window means are kept; on the device if None.

    Attributes:
        kernels: For predictors' arithmetic too.
        windows: Number of window means kept, after the budget.

    Raises:
        MemoryBudgetError: Not even two windows fit into the budget.
    """

    def __init__(
        self,
        layout: ParamLayout,
        xp: ModuleType,
        config: HistoryConfig,
        needs: Iterable[str],
        reserved: int = 0,
        windows: int = 0,
        kernels: KernelSet = REFERENCE,
        budget: int | None = None,
        least: Callable[[float], float] = float,
        memory: Memory | None = None,
    ) -> None:
        self.layout, self.xp, self.kernels = layout, xp, kernels
        self.window, self.dtype = config.window, config.dtype
        self.needs = frozenset(needs)
        unknown = self.needs - NEEDS
        if unknown:
            raise PredictionError(
                "a component needs something that the history does not keep",
                where="needs",
                got=sorted(unknown),
                expected=f"a subset of {sorted(NEEDS)}",
                fix="correct the class attribute `needs`",
            )
        self._reserved, self._least, self._memory = reserved, least, memory
        self.budget_bytes = int(least(budget_bytes(config) if budget is None else budget))
        self._wanted = max(config.windows, windows)
        self.windows = self._fit(self._wanted)
        self.active = True
        self._adapter: Adapter | None = None
        self._recent: Buckets | None = None
        self._recent_is: str = "nothing"
        self._update_norm: float | None = None
        self._older: Buckets | None = None
        self._older_is_update = False
        self._sum: Buckets | None = None
        self._count = 0
        to_host = memory.to_host if memory is not None else None
        self._means = WindowMeans(layout, xp, self.dtype, kernels, to_host)
        self._closed = 0
        self._last_end: Buckets | None = None
        self._displacement: Buckets | None = None
        self._end_count = 0
        self._straightness = math.nan
        self._averaging = True

    def average(self, wanted: bool) -> None:
        """Keep window means from now on, or not; leaving off saves a pass over the weights per step."""
        if not wanted and self._averaging:
            self._means.keep(0)
            self._count = 0
        self._averaging = wanted

    def _copies(self, dtype: str, away: bool) -> int:
        """Whole copies of all weights at most, the window means apart."""
        copies = 0
        if "last-update" in self.needs:
            copies += 1
        if "reach" in self.needs:  # the update before, where the path began, and how far it came
            copies += 3
        if "window-means" in self.needs:
            copies += 1 + away  # the sum, and what is brought back to be read
        if "straightness" in self.needs:
            copies += 2
        # Work space: a window mean, or a window end and its displacement, is made before the old one goes.
        return copies + (2 if "straightness" in self.needs else 1) + (dtype != "float32")

    def reserve(self, nbytes: int) -> None:
        """Leave `nbytes` of the budget to others; the oldest windows go where they no longer fit.

        Raises:
            MemoryBudgetError: Not even two windows fit beside them; what was reserved before stays so.
        """
        if nbytes != self._reserved:
            former, self._reserved = self._reserved, nbytes
            try:
                self.windows = self._fit(self._wanted)
            except MemoryBudgetError:
                self._reserved = former
                raise
            self._means.keep(self.windows)

    def _fit(self, wanted: int) -> int:
        fitting = (w for w in range(wanted, 1, -1) if self.planned_bytes(w) <= self.budget_bytes)
        windows = int(self._least(next(fitting, 0)))  # the largest shard decides for all
        if windows:
            return windows
        least = self.planned_bytes(2)
        ways = [f"set history.memory_budget_mib to {math.ceil(least / MIB)}", *self._smaller()]
        raise MemoryBudgetError(
            "the weight history does not fit into its memory budget",
            where="history.memory_budget_mib",
            got=f"{self.budget_bytes / MIB:.1f} MiB",
            expected=f"at least {least / MIB:.1f} MiB for {self.layout.total:,} weights",
            fix=", or ".join(ways),
        )

    def _smaller(self) -> list[str]:
        """What would take less memory than the least of now."""
        least, found = self.planned_bytes(2), []
        memory = self._memory
        if memory is not None and memory.apart:
            if memory.to_host is None and self.planned_bytes(2, away=True) < least:
                found.append('set memory.history to "host"')
            if memory.snapshots_stay and self._reserved:
                found.append('set memory.snapshots to "host"')
        if self.dtype != "int8" and self.planned_bytes(2, dtype="int8") < least:
            found.append('set history.dtype to "int8"')
        return [*found, "choose a predictor that needs less (last-update)"]

    def planned_bytes(
        self, windows: int | None = None, dtype: str | None = None, away: bool | None = None
    ) -> int:
        """Bytes that the history and what is reserved take at most of the memory that the model lies in.

        Args:
            windows: Window means; those kept now if None.
            dtype: How they are kept; as configured if None.
            away: Whether they wait in host memory; as configured if None.
        """
        kept = (self.windows if windows is None else windows) if "window-means" in self.needs else 0
        dtype = self.dtype if dtype is None else dtype
        memory = self._memory
        away = memory is not None and memory.to_host is not None if away is None else away
        if away and memory is not None and memory.apart:
            kept = 0 if dtype == "float32" else min(kept, 1)  # codes on their way back
        kept_as = self.layout.bucket_dtype if dtype == "float32" else dtype
        per_window = sum(encoded_bytes(n, kept_as) for n in self.layout.bucket_sizes)
        return self._reserved + self.layout.nbytes * self._copies(dtype, away) + kept * per_window

    def bytes_in_use(self) -> int:
        """Bytes of all arrays held now; window means in host memory count where the model lies there too."""
        held: list[Buckets | None] = [
            self._recent,
            self._older,
            self._sum,
            self._last_end,
            self._displacement,
        ]
        sizes = [
            self.layout.itemsize * int(b.shape[0]) for buckets in held if buckets is not None for b in buckets
        ]
        apart = self._memory is not None and self._memory.apart
        return sum(sizes) + self._means.device_bytes + (0 if apart else self._means.host_bytes)

    def before_step(self, adapter: Adapter) -> None:
        """Copy the weights before a real step, if the last update is needed."""
        self._adapter = adapter
        if self.active and "last-update" in self.needs:
            if "reach" in self.needs:
                self._recent, self._older = self._older, self._recent
                self._older_is_update = self._recent_is == "update"
            self._recent = adapter.read_params(self._recent)
            self._recent_is = "before"
            self._update_norm = None

    def after_step(self, adapter: Adapter) -> None:
        """Take in the weights after a real step."""
        if not self.active:
            self._recent_is = "nothing"
            return
        if self._recent_is == "before":
            self._recent_is = "before a step"
        if "window-means" in self.needs and self._averaging:
            self._add(adapter)
        if "straightness" in self.needs:
            self._end_count += 1
            if self._end_count >= self.window:
                self._end_window(adapter)

    def _add(self, adapter: Adapter) -> None:
        if self._sum is None or self._count == 0:
            self._sum = adapter.read_params(self._sum)
        else:
            self._sum = adapter.add_params(self._sum)
        self._count += 1
        if self._count >= self.window:
            self._close_window()

    def _close_window(self) -> None:
        assert self._sum is not None
        self._means.keep(self.windows - 1)
        self._closed += 1
        self._means.append(self._mean_of(self._sum), self._closed)
        self._count = 0

    def _end_window(self, adapter: Adapter) -> None:
        self._end_count = 0
        end = adapter.read_params()
        if self._last_end is not None:
            step, products = self.kernels.displace(end, self._last_end, self._displacement, self.xp)
            if products is not None:
                self._straightness = _cosine(*products)
            self._displacement = step
        self._last_end = end

    def _mean_of(self, total: Buckets) -> Buckets:
        return self.kernels.window_mean(total, self._count, None, self.xp)[0]

    @property
    def has_update(self) -> bool:
        """Whether `last_update` can be given."""
        return self._recent_is in {"before a step", "update"}

    @property
    def window_means(self) -> Sequence[Buckets]:
        """Means of the last windows, oldest first. Read only; those encoded or away are made when taken."""
        return self._means.seen()

    def versions(self) -> tuple[int, ...]:
        """Counts of writes into the window means; see `WindowMeans.versions`."""
        return self._means.versions()

    @property
    def open_steps(self) -> int:
        """Real steps since the newest window mean was closed."""
        return self._count

    def last_update(self) -> Buckets:
        """Weights after the last real step minus those before it; valid until the next real step.

        Raises:
            PredictionError: No real step was seen since the last jump or restore.
        """
        if not self.has_update or self._recent is None or self._adapter is None:
            raise PredictionError(
                "the last update is not known",
                where="history.last_update",
                expected="a real step since the last jump, and 'last-update' in the component's needs",
                fix="ask `ready` first",
            )
        if self._recent_is != "update":
            self._recent = self._adapter.add_params(self._recent, 1.0, -1.0)
            self._recent_is = "update"
        return self._recent

    def updates(self) -> tuple[Buckets, Buckets | None]:
        """The last update, and the one of the real step right before it where both were seen."""
        update = self.last_update()
        return update, self._older if self._older_is_update else None

    def note_norm(self, norm: float) -> None:
        """Keep the Euclidean norm of the last update, which somebody has measured, until the next step."""
        self._update_norm = norm

    def norm_of(self, vector: Buckets) -> float | None:
        """Euclidean norm of a change of the weights; None where other processes would have to be asked."""
        if vector is self._recent and self._recent_is == "update" and self._update_norm is not None:
            return self._update_norm
        if isinstance(self.kernels, RankedKernels):
            return None
        return math.sqrt(float(self.kernels.gram([vector], self.xp)[0, 0]))

    def current(self) -> Buckets:
        """Copy of the current weights.

        Raises:
            PredictionError: No step was seen yet.
        """
        if self._adapter is None:
            raise PredictionError(
                "the current weights are not known",
                where="history.current",
                expected="a real step seen before",
                fix="ask `ready` first",
            )
        return self._adapter.read_params()

    def displacement(self, index: int = -1) -> Buckets:
        """Difference of two successive window means; -1 is the newest pair.

        Raises:
            PredictionError: There are too few windows.
        """
        newer = len(self._means) + index
        if newer < 1 or newer >= len(self._means):
            raise PredictionError(
                "the window displacement is not known",
                where=f"history.displacement({index})",
                got=f"{len(self._means)} windows",
                expected="two more windows than that",
                fix="ask `ready` first",
            )
        means = self.window_means
        return self.kernels.displace(means[newer], means[newer - 1], None, self.xp)[0]

    def latest_mean(self) -> tuple[Buckets, float] | None:
        """Newest mean of at least half a window, and how many real steps ago its middle was.

        Returns:
            The mean of the open window where it holds half a window, else that of the last full one; None
            where there is neither.
        """
        if self._sum is not None and 2 * self._count >= self.window:
            return self._mean_of(self._sum), (self._count - 1) / 2.0
        if self._means:
            return self.window_means[-1], self._count + (self.window - 1) / 2.0
        return None

    @property
    def latest_age(self) -> float | None:
        """How old the `latest_mean` is, without computing it."""
        if self._sum is not None and 2 * self._count >= self.window:
            return (self._count - 1) / 2.0
        return self._count + (self.window - 1) / 2.0 if self._means else None

    @property
    def has_earlier_mean(self) -> bool:
        """Whether there is an `earlier_mean`."""
        half_open = self._sum is not None and 2 * self._count >= self.window
        return len(self._means) > (0 if half_open else 1)

    def earlier_mean(self) -> tuple[Buckets, float] | None:
        """The window mean before the `latest_mean`, and how many real steps lie between their middles.

        Returns:
            None where there is no earlier one.
        """
        if self._sum is not None and 2 * self._count >= self.window:
            return (self.window_means[-1], (self._count + self.window) / 2.0) if self._means else None
        return (self.window_means[-2], float(self.window)) if len(self._means) > 1 else None

    def straightness(self) -> float:
        """Cosine between the last two displacements of window ends; NaN while unknown.

        1 is a straight drift, 0 pure noise, about -0.5 stationary noise.
        """
        return self._straightness

    def restart(self, *, keep_straightness: bool = False) -> None:
        """Begin anew after a jump or a restore, so that no window mixes both sides of it."""
        self._means.keep(0)
        self._count = 0
        self._recent_is = "nothing"
        self._older_is_update = False
        self._end_count = 0
        self._last_end = self._displacement = None
        if not keep_straightness:
            self._straightness = math.nan

    def sleep(self, *, keep_buffers: bool = False) -> None:
        """Stop observing; `wake` starts anew.

        Args:
            keep_buffers: Keep the arrays for reuse, for pauses of a few steps.
        """
        self.active = False
        self.restart(keep_straightness=True)
        if keep_buffers:
            return
        self._recent = self._older = self._sum = None

    def wake(self) -> None:
        """Observe again."""
        self.active = True

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and arrays; the arrays are the history's own."""
        observed = self._adapter is not None
        return {**take(self, _STATE), "means": self._means.state(), "observed": observed}

    def load_state_dict(self, state: Mapping[str, Any], adapter: Adapter) -> None:
        """Put back what `state_dict` gave.

        Args:
            state: The state.
            adapter: The model that is observed.
        """
        put(self, _STATE, state)
        self._update_norm = None
        self._means.load_state(state["means"])
        self._adapter = adapter if state["observed"] else None


def _cosine(first: float, second: float, product: float) -> float:
    """Cosine from two squared norms and the inner product; 0 for a zero vector, NaN where not finite."""
    scale = math.sqrt(first) * math.sqrt(second)
    if not math.isfinite(scale):
        return math.nan
    return product / scale if scale > 0.0 else 0.0
