"""The correction of one run: measures residuals, corrects changes before, while and after they are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from hybridcore.budget import Budget
from hybridcore.config import HybridConfig
from hybridcore.containment import Containment
from hybridcore.correction.aim import aim
from hybridcore.correction.compression import CompressedBuckets
from hybridcore.correction.displacement import scale_groups
from hybridcore.correction.measurement import Measurement, loss_curve, measure_displacement
from hybridcore.correction.none import NoCorrection
from hybridcore.correction.store import ResidualStore
from hybridcore.correction.storefile import HEADER
from hybridcore.counts import Counts
from hybridcore.errors import HybridCoreError
from hybridcore.history import History
from hybridcore.jumps import Jump
from hybridcore.layout import Buckets, ParamGroup
from hybridcore.probes import paired_difference
from hybridcore.protocols import Adapter, Correction, Corrector, Phase, Prediction, Residual, Situation
from hybridcore.ranks import Ranks
from hybridcore.replies import check_correction
from hybridcore.reporting import Reporter
from hybridcore.state import FEATURE_NAMES, Statistics
from hybridcore.trials import TrialKeeper

__all__ = ["CorrectionKeeper"]

_LEAST_FACTOR = 0.05
"""A correction smaller than this share of the change is not worth its probes."""

_SAMPLE_EVERY = 100
"""Real steps between measurements of displacement in rows of continuous changes."""

_LONGEST_ROW = 10


class CorrectionKeeper:
    """Owns the residual store and the corrector of a run; with the corrector `none` it does nothing.

    Args:
        adapter: The model.
        config: Table ``[correction]``, and the length of the run.
        corrector: Learns and corrects.
        history: Where windows restart after a correction.
        statistics: Losses and features.
        trials: The open trial and its probes.
        budget: Whether probes are affordable.
        counts: Counters.
        reporter: Hears of residuals and corrections.
        ranks: What the processes of the run agree on.
        containment: Calls the corrector.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: HybridConfig,
        corrector: Corrector,
        history: History,
        statistics: Statistics,
        trials: TrialKeeper,
        budget: Budget,
        counts: Counts,
        reporter: Reporter,
        ranks: Ranks | None = None,
        containment: Containment | None = None,
    ) -> None:
        self._containment = containment if containment is not None else Containment()
        self._containment.substitute["corrector"] = self._drop
        self._adapter, self._config, self.corrector = adapter, config.correction, corrector
        self._history, self._statistics, self._trials = history, statistics, trials
        self._budget, self._counts, self._reporter = budget, counts, reporter
        self._run_steps = config.run.steps
        self._ranks = ranks if ranks is not None else Ranks(adapter)
        self.active = not isinstance(corrector, NoCorrection)
        self.store = ResidualStore(self._config.capacity, self._config.memory_budget_mib * 2**20)
        self._tell("reset", corrector.reset, adapter.layout, self.store)
        self._rng = np.random.default_rng(config.run.seed)
        self._asked: tuple[Situation, Prediction, Correction] | None = None
        self._realised = math.nan
        self._open: Measurement | None = None
        self._since = self._refuted = self._skip = 0
        self._sampled = -_SAMPLE_EVERY
        if self.active and self._config.store and (Path(self._config.store) / HEADER).is_file():
            self.store.load(self._config.store)
            for residual in self.store:
                self._tell("observe", self.corrector.observe, residual)

    def _tell(self, method: str, function: Callable[..., None], *args: Any) -> None:
        name, passes = self.corrector.name, (HybridCoreError,)
        self._containment.call("corrector", name, method, function, *args, otherwise=None, passes=passes)

    def _drop(self, name: str) -> None:
        """Go on without correction; residuals that are known stay in the store."""
        self.corrector, self.active = NoCorrection(), False
        self._open = self._asked = None

    @staticmethod
    def reserved_bytes(adapter: Adapter, corrector: Corrector) -> int:
        """Bytes of weight copies that measuring takes at most."""
        if isinstance(corrector, NoCorrection):
            return 0
        return adapter.layout.nbytes * (4 if corrector.measures_weights else 2)

    # -- before a change ---------------------------------------------------------------------------

    def correct(self, prediction: Prediction, name: str) -> tuple[Prediction, Mapping[ParamGroup, float]]:
        """The prediction as it is to be applied, and the gains of its groups."""
        self._asked, self._realised = None, math.nan
        if not self.active or prediction.horizon <= 0.0:
            return prediction, {}
        situation = self._situation(prediction, name)
        correction = self._bounded(prediction, situation)
        if isinstance(self.corrector, NoCorrection):  # the corrector has just been dropped
            return prediction, {}
        self._asked = situation, prediction, correction
        factor = prediction.scale * correction.scale
        horizon = prediction.horizon * correction.scale
        if correction.residual is None:
            return attrs.evolve(prediction, scale=factor, horizon=horizon), correction.gains
        pairs = zip(prediction.deltas, correction.residual, strict=True)
        deltas = tuple(d * factor + r * horizon for d, r in pairs)
        return attrs.evolve(prediction, deltas=deltas, horizon=horizon, scale=1.0), correction.gains

    def gains(self, prediction: Prediction, name: str) -> Mapping[ParamGroup, float]:
        """Gains for a row of continuous changes; their length stays the controller's."""
        if not self.active or not self.corrector.measures_weights:
            return {}
        nothing = np.zeros(len(FEATURE_NAMES))  # gains do not depend on the place, and features cost passes
        place = Situation(self._counts.real_steps, nothing, name, prediction.horizon, math.nan, math.nan)
        return self._ask(prediction, place).gains

    def _bounded(self, prediction: Prediction, situation: Situation) -> Correction:
        found = self._ask(prediction, situation)
        most = self._config.max_factor
        return attrs.evolve(found, scale=min(max(found.scale, 1.0 - most), 1.0 + most))

    def _ask(self, prediction: Prediction, situation: Situation) -> Correction:
        """The corrector's answer, or none where it gives nothing that can be used."""
        layout, xp, corrector = self._adapter.layout, self._adapter.xp, self.corrector
        return self._containment.call(
            "corrector",
            corrector.name,
            "correct",
            corrector.correct,
            prediction,
            situation,
            self._history,
            xp,
            otherwise=Correction(),
            check=lambda found: check_correction(found, layout, xp),
        )

    def _situation(self, prediction: Prediction, name: str) -> Situation:
        level, slope = loss_curve(self._statistics, self._since)
        change = slope * prediction.horizon
        if prediction.predicted_loss is not None:
            change = prediction.predicted_loss - level
        step = self._counts.real_steps
        features = self._statistics.features(
            phase=Phase.PREDICT,
            phase_progress=0.0,
            progress=min(1.0, step / self._run_steps),
            straightness=self._history.straightness(),
            moments=self._adapter.moments(),
        )
        mean = self._ranks.agreed  # all ranks must correct alike
        features = np.array([mean(float(f)) for f in features])
        features.setflags(write=False)  # the store keeps them
        return Situation(step, features, name, prediction.horizon, mean(level), mean(change))

    # -- while a change is made --------------------------------------------------------------------

    def micro_due(self, done: int) -> bool:
        """Whether a micro-correction follows this predicted step (F31)."""
        every = self._config.interval
        return self.active and every > 0 and done % every == 0

    @property
    def watches_shares(self) -> bool:
        """Whether changes in shares are measured on the way."""
        return self.active and self._config.interval > 0

    @property
    def level(self) -> float:
        """Training loss before the change that was corrected last; NaN without one."""
        return self._asked[0].loss if self._asked is not None else math.nan

    def micro(self, points: list[tuple[float, float]]) -> float:
        """Share of the pending change to end at, from the losses measured along it."""
        slope = self._asked[0].predicted_change if self._asked is not None else math.nan
        points[-1] = points[-1][0], self._ranks.agreed(points[-1][1])
        target = aim(points, slope, 1.0 + self._config.max_factor)
        self._counts.micro_corrections += 1
        self._reporter.correction("micro", self.corrector.name, True, points[-1][1], math.nan, target - 1.0)
        return target

    # -- after a change ----------------------------------------------------------------------------

    def measured(self, change: float) -> None:
        """The paired loss change right after the change (tentative test)."""
        self._realised = self._ranks.agreed(change)

    def refused(self) -> None:
        """The change was undone at once; its loss change teaches all the same."""
        if self._asked is not None and self._realised == self._realised:
            self._learn(self._asked[0], self._realised)
        self._asked = None

    def landed(self, jump: Jump, share: float) -> None:
        """A change stands for now: watch what the real steps make of it."""
        self._since = 0
        if self._asked is None:
            return
        situation, prediction, correction = self._asked
        weights = self._adapter.read_params() if self.corrector.measures_weights else None
        self._open = Measurement(
            situation,
            prediction,
            correction,
            jump,
            self._copy(prediction.deltas),
            share,
            weights,
            max(1, self._trials.steps_left // 2),
            self._realised,
        )
        self._asked = None

    def repeated(self, jump: Jump, name: str) -> None:
        """A change of a row was applied: now and then, compare it with the real step that follows."""
        self._since = 0
        step = self._counts.real_steps
        due = self.active and self.corrector.measures_weights and step - self._sampled >= _SAMPLE_EVERY
        if not due or jump.asked <= 0.0:
            return
        self._sampled = step
        prediction = Prediction(jump.deltas, jump.asked, jump.confidence, scale=jump.scale)
        situation = attrs.evolve(self._situation(prediction, name), predicted_change=math.nan)
        self._open = Measurement(
            situation,
            prediction,
            Correction(),
            jump,
            self._copy(jump.deltas),
            1.0,
            self._adapter.read_params(),
            1,
            continuous=True,
        )

    def _copy(self, buckets: Buckets) -> Buckets:
        return tuple(self._adapter.xp.asarray(b, copy=True) for b in buckets)

    def note(self, loss: float) -> None:
        """Hear of the training loss of a real step."""
        self._since += 1
        if self._open is not None:
            self._open.losses.append(loss)

    def settle(self, *, may_act: bool) -> None:
        """After a real step of the open trial: measure when enough of them have passed, and correct.

        Args:
            may_act: Whether the weights may still be changed before the verdict.
        """
        watched = self._open
        if watched is None or len(watched.losses) < watched.wait:
            return
        self._open = None
        realised = watched.realised
        if realised != realised and not watched.continuous:
            realised = float(np.mean(watched.losses)) - watched.situation.loss
        rank = int(getattr(self.corrector, "rank", 0))
        kernels = self._history.kernels
        groups, weights = measure_displacement(watched, self._adapter, rank, self._rng, self._ranks, kernels)
        self._learn(watched.situation, self._ranks.agreed(realised), groups, weights)
        if may_act and not watched.continuous:
            self._amend(watched)

    def forget(self) -> None:
        """An earlier state came back for reasons of its own: what is being watched teaches nothing."""
        self._open = self._asked = None
        self._since = 0

    def failed(self) -> None:
        """The open trial failed; what its losses told so far teaches all the same."""
        watched, self._open = self._open, None
        self._since = 0
        if watched is None or watched.continuous:
            return
        realised = watched.realised
        if watched.losses and math.isfinite(watched.losses[-1]):
            realised = watched.losses[-1] - watched.situation.loss
        self._learn(watched.situation, self._ranks.agreed(realised))

    def _learn(
        self,
        situation: Situation,
        realised: float,
        groups: Mapping[ParamGroup, tuple[float, float]] | None = None,
        weights: CompressedBuckets | None = None,
    ) -> None:
        residual = Residual(situation, realised, groups or {}, weights)
        self._tell("observe", self.corrector.observe, residual)
        self.store.add(residual)
        self._reporter.residual(residual)

    def _amend(self, watched: Measurement) -> None:
        """Correct the change that was made by what is known now, unless the probes object (F28, F29)."""
        trial = self._trials.trial
        if trial is None or trial.by != "probe" or not self._affordable():
            return
        if self._skip > 0:
            self._skip -= 1
            return
        old, new = watched.correction, self._bounded(watched.prediction, watched.situation)
        if not self.active:
            return
        most, factors = self._config.max_factor, {}
        for group, applied in watched.jump.groups.items():
            was = old.scale * old.gains.get(group, 1.0)
            factor = new.scale * new.gains.get(group, 1.0) / was - 1.0 if was > 0.0 else 0.0
            factors[group] = applied * min(max(factor, -most), most)
        if max(map(abs, factors.values()), default=0.0) < _LEAST_FACTOR:
            return
        layout, xp = self._adapter.layout, self._adapter.xp
        length = watched.prediction.scale * old.scale * watched.share
        change = scale_groups(watched.deltas, {g: f * length for g, f in factors.items()}, layout, xp)
        before = self._trials.probe(None)
        current = self._adapter.read_params()
        after = self._trials.probe(tuple(w + c for w, c in zip(current, change, strict=True)))
        difference = paired_difference(after, before)
        gained = self._ranks.agreed(difference.mean)
        error = self._ranks.agreed(difference.error)
        kept = gained + error < 0.0  # False for NaN; the weights are what they were, bit for bit
        if kept:
            self._refuted = 0
            self._adapter.apply_delta(change)
            self._apply_bookkeeping(watched, new.scale / old.scale - 1.0)
        else:
            self._counts.corrections_reverted += 1
            self._skip = 2**self._refuted  # each refusal in a row doubles the pause
            self._refuted = min(self._refuted + 1, _LONGEST_ROW)
        largest = max(factors.values(), key=abs)
        name = self.corrector.name
        self._reporter.correction("correct", name, kept, gained, error, largest)

    def _apply_bookkeeping(self, watched: Measurement, further: float) -> None:
        """What follows a correction that stands."""
        self._counts.corrections += 1
        if "batch-statistics" in self._adapter.capabilities:
            self._adapter.refresh_statistics(self._trials.probe_batches)
        self._history.restart(keep_straightness=True)
        self._since = 0
        most = self._config.max_factor
        steps = watched.jump.horizon * watched.share * min(max(further, -most), most)
        self._counts.predicted_steps += steps
        trial = self._trials.trial
        if trial is not None:
            trial.predicted = max(0.0, trial.predicted + steps)

    def _affordable(self) -> bool:
        cost, seconds = self._trials.probe_cost
        return self._budget.allows(2.0 * cost, 2.0 * seconds)

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write the store where one was asked for.

        Raises:
            StoreError: It cannot be written.
        """
        if self.active and self._config.store:
            self.store.save(self._config.store)

    def state_dict(self) -> dict[str, Any]:
        """Store, corrector, and the change under watch."""
        return {
            "store": self.store.state_dict(),
            "corrector": self._corrector_state(),
            "rng": self._rng.bit_generator.state,
            "since": self._since,
            "sampled": self._sampled,
            "refuted": self._refuted,
            "skip": self._skip,
            "asked": self._asked,
            "realised": self._realised,
            "open": self._open,
        }

    def _corrector_state(self) -> dict[str, Any]:
        nothing: dict[str, Any] = {}
        corrector = self.corrector
        return self._containment.call(
            "corrector", corrector.name, "state_dict", corrector.state_dict, otherwise=nothing
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.store.load_state_dict(state["store"])
        self.corrector.load_state_dict(state["corrector"])
        self._rng.bit_generator.state = state["rng"]
        self._since, self._sampled = int(state["since"]), int(state["sampled"])
        self._refuted, self._skip = int(state["refuted"]), int(state["skip"])
        self._asked, self._realised, self._open = state["asked"], state["realised"], state["open"]
