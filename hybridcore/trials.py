"""Trials: one or more jumps and the real steps until the verdict on them, or the rollback."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.budget import Budget
from hybridcore.checkpoint.attributes import put, take
from hybridcore.config import HybridConfig
from hybridcore.errors import MemoryBudgetError
from hybridcore.history import History
from hybridcore.layout import Buckets
from hybridcore.probes import PairedDifference, ProbeSet, paired_difference
from hybridcore.protocols import Action, Adapter, StepResult
from hybridcore.ranks import Ranks
from hybridcore.rates import RateControl
from hybridcore.reach import Reach
from hybridcore.state import Statistics
from hybridcore.trial import Point, Trial
from hybridcore.verdict import Reference, Verdict, judge, overfitted, rate_between, steepest

__all__ = ["TrialKeeper"]

_STATE = (
    "trial",
    "reserved",
    "cost",
    "seconds_per_probe",
    "_examples",
    "_point",
    "_older",
    "_rate",
    "_previous",
    "_unproven",
    "_ended",
    "_undone",
)

_SPARE = 3
"""Skipped steps in a trial that may be their batches' fault."""


class TrialKeeper:
    """Opens, guards, judges and undoes trials; at most one is open.

    Args:
        adapter: The model.
        config: Verdict and probe settings.
        history: Window means.
        statistics: Loss level and its noise.
        probes: Held-out examples.
        budget: Books what probes and failures cost.
        reach: Distance travelled, taken back with a failed trial; None where nobody asks for it.
        on_probe: Called with ``(examples, loss, cost)`` after each probe.
        reserved: Bytes of the memory budget that neither history nor snapshots may take.
        rates: Knows the factor on the learning rate, which a restored snapshot takes back.

    Attributes:
        trial: The open trial, or None.
        reserved: See above; may be set.
        release: Called when the memory budget does not hold a trial; may lower `reserved`.
        cost: Cost units spent on probes so far.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: HybridConfig,
        history: History,
        statistics: Statistics,
        probes: ProbeSet,
        budget: Budget,
        reach: Reach | None,
        on_probe: Callable[[int, float, float], None],
        reserved: int = 0,
        rates: RateControl | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._adapter, self._config = adapter, config
        self._history, self._statistics = history, statistics
        self._probes, self._budget, self._reach = probes, budget, reach
        self._on_probe, self.reserved = on_probe, reserved
        self._rates = rates if rates is not None else RateControl(adapter)
        self._ranks = ranks if ranks is not None else Ranks(adapter)
        self.trial: Trial | None = None
        self.release: Callable[[MemoryBudgetError], None] = lambda error: None
        self.cost = 0.0
        self._examples = 0
        self._point: Point | None = None
        self._older: Point | None = None
        self._rate: NDArray[np.float64] | None = None
        self._previous: Trial | None = None
        self._unproven = 0.0
        self._ended = self._undone = 0
        self.seconds_per_probe = 0.0

    @property
    def examples(self) -> int:
        """Examples of a real step; 0 while unknown."""
        return self._examples

    @property
    def steps_left(self) -> int:
        """Real steps until the open trial's verdict; 0 without one."""
        return max(0, self.trial.settle - self.trial.real_steps) if self.trial is not None else 0

    @property
    def probe_cost(self) -> tuple[float, float]:
        """Mean cost of one probe so far, in step equivalents and seconds; one step before the first."""
        return (self.cost / self._probes.count if self._probes.count else 1.0), self.seconds_per_probe

    @property
    def probe_batches(self) -> tuple[Any, ...]:
        """The probe set's batches."""
        return self._probes.batches

    def knows_curve(self, cost: float) -> bool:
        """Whether a trial opened now could say how fast the loss falls without it.

        Args:
            cost: Cost units so far.
        """
        progress = cost - self.cost - (self._history.latest_age or 0.0)
        return self._history.has_earlier_mean or self._near(self._point, progress)

    def _near(self, point: Point | None, progress: float) -> bool:
        """Whether a slope from that point to here is one of now.

        Curves flatten: a slope from long ago would ask more than the user's own steps can give now.
        """
        window = self._history.window
        return point is not None and 0.5 * window <= progress - point.progress <= 3.0 * window

    def expected_cost(self, settle: int) -> tuple[float, float]:
        """What a trial may be expected to cost, in step equivalents and seconds.

        A probe, and its steps as often as trials have failed so far (Laplace's rule of succession: one in two
        before the first).

        Args:
            settle: Its real steps.
        """
        per_probe, seconds = self.probe_cost
        per_step = self._statistics.seconds_per_step
        per_step = per_step if math.isfinite(per_step) else 0.0
        lost = settle * (self._undone + 1.0) / (self._ended + 2.0)
        return per_probe + lost, seconds + lost * per_step

    def open(self, action: Action, step: int, cost: float, predicted: float) -> Trial:
        """Take the snapshot, and the reference curve where the verdict needs one.

        Args:
            action: The Predict action.
            step: Real steps so far.
            cost: Cost units so far, without what this call adds.
            predicted: Optimizer steps predicted so far.
        """
        previous = self._previous if action.continuous and self._contiguous(step) else None
        snapshots = 2 if action.continuous else 1
        self._reserve(self._adapter.snapshot_nbytes() * snapshots)
        reference, progress = None, cost - self.cost
        if action.judge == "probe":
            reference, progress = self._reference(cost, predicted, previous)
        self.trial = Trial(
            snapshot=self._adapter.snapshot(),
            step=step,
            predictor=action.predictor or "",
            horizon=action.horizon,
            settle=max(1, action.settle),
            by=action.judge,
            reference=reference,
            statistics=self._statistics.state_dict(),
            loss_level=self._statistics.loss_ema(16),
            loss_deviation=self._statistics.loss_deviation,
            loss_peak=max(list(self._statistics.losses)[-32:], default=-math.inf),
            seconds=self._budget.total_seconds,
            progress=progress,
            covered=predicted,
            continuous=action.continuous,
            reach=self._reach.state_dict() if self._reach is not None else None,
            previous=previous,
            rate=self._rates.applied,
        )
        self._previous = None
        return self.trial

    def _reserve(self, nbytes: int) -> None:
        """Make room for the trial's snapshots, if need be by giving up the good states of recovery."""
        try:
            self._history.reserve(self.reserved + nbytes)
        except MemoryBudgetError as error:
            self.release(error)
            self._history.reserve(self.reserved + nbytes)

    def _contiguous(self, step: int) -> bool:
        last = self._previous
        return last is not None and step - (last.step + last.real_steps) <= 2

    def guard(self, result: StepResult) -> str | None:
        """Count a real step of the open trial; why the trial fails at once, or None."""
        trial = self.trial
        assert trial is not None
        trial.real_steps += 1
        if result.skipped or not math.isfinite(result.loss):
            if result.skipped and self._sound():
                return None
            return f"step {trial.real_steps} after the jump gave no finite loss or gradient"
        over = self.over_guard(result.loss)
        if over is None:
            return None
        # One hard batch is no divergence; a second one in the same trial, or a loss far outside, is.
        trial.strikes += 1
        limit = trial.guard_limit(self._config.verdict)
        far = trial.loss_level + 3.0 * (limit - trial.loss_level)
        return over if trial.strikes > 1 or not result.loss <= far else None

    def _sound(self) -> bool:
        """Whether a skipped step was its batch's fault and not the jump's: the probe set tells.

        A trial has three of them to spare, which bounds the cost.
        """
        trial = self.trial
        assert trial is not None
        trial.skipped += 1
        if trial.skipped > _SPARE or not self._probes.complete:
            return False
        loss = self._ranks.agreed(float(self.probe(None).mean()))  # all ranks find the same
        return math.isfinite(loss) and self.over_guard(loss) is None

    def over_guard(self, loss: float) -> str | None:
        """Why a loss fails the open trial, or None."""
        assert self.trial is not None
        limit = self.trial.guard_limit(self._config.verdict)
        if not loss <= limit:
            return f"training loss {loss:.4g} above the guard {limit:.4g}"
        return None

    def verdict(self, cost: float, predicted: float) -> Verdict | None:
        """Judge the open trial by probe; None where it is kept by its guard alone.

        Args:
            cost: Cost units so far, without what this call adds.
            predicted: Optimizer steps predicted so far.
        """
        trial = self.trial
        assert trial is not None
        if trial.reference is None:
            self._unproven += trial.predicted
            if not trial.continuous:
                self._point = None  # A slope across the jump would credit the jump to the steps.
            return None
        latest = self._history.latest_mean()
        mean, age = latest if latest is not None else (None, 0.0)
        position, progress = cost - age, cost - self.cost - age
        losses = self.probe(mean)
        verdict = judge(trial.reference, losses, position, trial.predicted, self._config.verdict)
        trained = np.asarray(list(self._statistics.losses)[-trial.real_steps :])
        verdict = attrs.evolve(verdict, overfitted=overfitted(losses, trained, self._config.verdict))
        covered = predicted - age * (trial.predicted / max(trial.real_steps, 1) if trial.continuous else 0.0)
        self._point = Point(losses, progress, covered) if verdict.kept else None
        self._older = Point(trial.reference.losses, trial.progress, trial.covered)
        if verdict.kept and trial.predicted > 0.0:
            # What this trial's predicted steps proved to be worth, those since the verdict before were too.
            worth = verdict.credit_steps / trial.predicted
            verdict = attrs.evolve(verdict, credit_steps=verdict.credit_steps + worth * self._unproven)
        self._unproven = 0.0
        return verdict

    def close(self) -> Trial:
        """End the open trial and give it."""
        trial = self.trial
        assert trial is not None
        self.trial = None
        self._ended += 1
        trial.previous = None
        self._previous = trial if trial.continuous else None
        return trial

    def undo(self, *, proven: bool) -> tuple[Trial, Trial]:
        """Restore the state before the open trial bit for bit and book its cost.

        In a row of continuous trials, a loss over the guard may be damage that was under way when the open
        trial began. There the state before the trial that came just before is restored.

        Args:
            proven: A probe has shown that the averaged weights are sound, so the open trial's start will do.

        Returns:
            The failed trial, and the trial whose start was restored.
        """
        assert self.trial is not None
        trial = self.trial
        origin = trial if proven or trial.previous is None else trial.previous
        self.close()
        self._undone += 1
        self._previous = None
        self._unproven = 0.0
        steps = trial.real_steps + (origin.real_steps if origin is not trial else 0)
        self._budget.lose(float(steps), self._budget.total_seconds - origin.seconds)
        start = time.perf_counter()
        self._adapter.restore(origin.snapshot)
        self._rates.restored(origin.rate)
        self._adapter.synchronize()
        self._budget.spend(0.0, self._ranks.mean(time.perf_counter() - start))
        self._statistics.load_state_dict(origin.statistics)
        if self._reach is not None and origin.reach is not None:
            self._reach.forget_distance(origin.reach)
        self._history.restart()
        self._point = None
        if origin.reference is not None:
            # The curve goes on from where it was; what was undone, real or predicted, was no progress.
            undone = trial.predicted + (origin.predicted if origin is not trial else 0.0)
            self._point = Point(origin.reference.losses, origin.progress + steps, origin.covered + undone)
        return trial, origin

    def forget(self) -> None:
        """Let go of references to a past that was undone."""
        self._previous = self._point = None
        self._unproven = 0.0

    def compare(self, before: NDArray[np.float64]) -> tuple[PairedDifference, str | None]:
        """Tentative test right after a jump: the paired difference, and why it is refused or None (F81)."""
        after = self.probe(None)
        if not np.isfinite(after).all():
            return PairedDifference(math.inf, 0.0, int(after.size)), "non-finite loss right after the jump"
        difference = paired_difference(after, before)
        c = self._config.probe
        limit = c.tolerance * abs(float(before.mean())) + c.confidence_z * difference.error
        if difference.mean > limit:
            return difference, f"loss rose by {difference.mean:.4g} right after the jump, limit {limit:.4g}"
        return difference, None

    def probe(self, weights: Buckets | None) -> NDArray[np.float64]:
        """Per-example losses of the probe set, booked; `weights` None is the current ones."""
        start = time.perf_counter()
        losses = self._probes.evaluate(self._adapter, weights)
        self._adapter.synchronize()
        seconds = self._ranks.mean(time.perf_counter() - start)
        cost = self._probes.charge(self._examples)
        self.cost += cost
        self.seconds_per_probe += (seconds - self.seconds_per_probe) / self._probes.count
        self._budget.spend(cost, seconds)
        self._on_probe(int(losses.size), float(losses.mean()), cost)
        return losses

    def linearise(self, directions: Sequence[Buckets]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Residuals (n,) of the probe set and their derivatives (n, k), booked.

        A derivative of a forward pass costs two of them: it has two products where the pass has one.
        """
        start = time.perf_counter()
        residuals, products = self._probes.linearise(self._adapter, directions)
        self._adapter.synchronize()
        cost = self._probes.charge(self._examples, forwards=1.0 + 2.0 * len(directions))
        self.cost += cost
        self._budget.spend(cost, self._ranks.mean(time.perf_counter() - start))
        self._on_probe(int(residuals.size), float(np.mean(residuals**2)), cost)
        return residuals, products

    def note_batch(self, examples: int) -> None:
        """Remember how many examples a real step uses, the unit of probe costs."""
        if examples > 0:
            self._examples = examples

    def state_dict(self) -> dict[str, Any]:
        """State, the open trial with its snapshots included."""
        return take(self, _STATE)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        put(self, _STATE, state)

    def _shallower(self, slope: float, behind: float) -> float:
        """Factor on the slope between two means that makes it no steeper than the losses of steps allow.

        A curve may flatten between the older mean and the newer. The losses of the steps of the newer one say
        so, where they are not too noisy.

        Args:
            slope: Mean loss per step.
            behind: Steps since the middle of the newest mean.

        Returns:
            Between 0 and 1; 1 where there is no mean yet, or fewer losses than say anything.
        """
        count = 2 * math.floor(behind) + 1
        recent = np.asarray(list(self._statistics.losses)[-count:])
        if slope >= 0.0 or recent.size < count:
            return 1.0
        return min(1.0, max(0.0, steepest(recent, self._config.verdict.confidence_z) / slope))

    def _reference(self, cost: float, predicted: float, previous: Trial | None) -> tuple[Reference, float]:
        """The curve before a jump, per real step of the user's own optimizer, and its place in real steps.

        Where jumps happened between its two points, the progress is shared among real and predicted steps;
        probes are no progress.
        """
        latest = self._history.latest_mean()
        mean, behind = latest if latest is not None else (None, 0.0)
        progress = cost - self.cost - behind
        if self._point is not None and _same(self._point.progress, progress):
            losses, earlier = self._point.losses, self._older  # The trial before ended here.
        else:
            losses, earlier = self.probe(mean), self._point
        if not self._near(earlier, progress):
            before, earlier = self._history.earlier_mean(), None
            if before is not None:
                pace = previous.predicted / max(previous.real_steps, 1) if previous is not None else 0.0
                earlier = Point(self.probe(before[0]), progress - before[1], predicted - pace * before[1])
        age = max(progress + predicted, 2.0)
        if earlier is not None:
            steps = progress - earlier.progress + max(0.0, predicted - earlier.covered)
            self._rate = rate_between(earlier.losses, losses, min(steps, age - 1.0), age)
            if previous is None:
                self._rate = self._rate * self._shallower(float(self._rate.mean()), behind)
        # Where there is no slope of now, an older one asks for more than now can be: sooner that than none,
        # which would credit the jump with what the steps did. A controller can wait (`knows_curve`).
        return Reference(losses, self._rate, cost - behind, age), progress


def _same(one: float, other: float) -> bool:
    """Whether two places on the curve are one; sums of probe costs round."""
    return abs(one - other) < 1e-6 * max(1.0, abs(one))
