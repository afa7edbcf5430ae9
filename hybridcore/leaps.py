"""The Predict phase: propose a change, apply it at once or in shares, settle what it moved."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import HybridConfig
from hybridcore.containment import Containment
from hybridcore.correction.keeper import CorrectionKeeper
from hybridcore.counts import Counts
from hybridcore.errors import (
    DeltaError,
    HybridCoreError,
    PluginError,
    PluginFailedError,
    PredictionError,
)
from hybridcore.history import History
from hybridcore.jumps import Jump, JumpLimiter
from hybridcore.probes import FORWARD_COST, ProbeSet, paired_difference
from hybridcore.protocols import (
    Action,
    Adapter,
    Buckets,
    LinearisingPredictor,
    MeasuringPredictor,
    Prediction,
    Predictor,
)
from hybridcore.replies import sound_prediction
from hybridcore.reporting import Reporter
from hybridcore.restraint import Restraint
from hybridcore.trials import TrialKeeper

__all__ = ["Leaps", "Shares"]

logger = logging.getLogger("hybridcore")

STRIKES = 3
"""Wrong proposals in a row after which a predictor is dropped."""


@attrs.define
class Shares:
    """A change that is applied over several batches (mode ``"step"``).

    Attributes:
        jump: The whole change.
        steps: Shares it is cut into.
        before: Probe losses before it, for micro-corrections; None without them.
        done: Shares applied.
        size: Size of each share that is left, over the whole change.
        applied: What was applied so far, over the whole change.
        measured: Pairs of `applied` and the loss change measured there.
    """

    jump: Jump
    steps: int
    before: NDArray[np.float64] | None = None
    done: int = 0
    size: float = attrs.field(default=attrs.Factory(lambda self: 1.0 / self.steps, takes_self=True))
    applied: float = 0.0
    measured: list[tuple[float, float]] = attrs.field(factory=list)


class Leaps:
    """Applies predicted changes to the model of one run.

    Args:
        adapter: The model.
        config: Groups, probes and phases.
        predictors: By registry name.
        history: What predictors go by.
        probes: Held-out examples.
        trials: Opens the trial that a change belongs to.
        corrections: Corrects changes and watches what becomes of them.
        counts: Counters.
        reporter: Hears of applied changes.
        restraint: Shortens horizons and asks for more confidence after a warning.
        containment: Calls the predictors.
        on_error: Hears of a predictor's name and of the error that its proposal was refused with.

    Attributes:
        pending: The change of an open Predict phase of mode ``"step"``, or None.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: HybridConfig,
        predictors: Mapping[str, Predictor],
        history: History,
        probes: ProbeSet,
        trials: TrialKeeper,
        corrections: CorrectionKeeper,
        counts: Counts,
        reporter: Reporter,
        restraint: Restraint,
        on_error: Callable[[str, HybridCoreError], None],
        containment: Containment | None = None,
    ) -> None:
        self._containment = containment if containment is not None else Containment()
        self._strikes: dict[str, int] = {}
        self._restraint, self._on_error = restraint, on_error
        self._adapter, self._config, self._predictors = adapter, config, predictors
        self._history, self._probes, self._trials = history, probes, trials
        self._corrections = corrections
        self._counts, self._reporter = counts, reporter
        self._limiter = JumpLimiter(adapter.layout, adapter.xp, config.groups, history.kernels)
        self.pending: Shares | None = None

    def propose(self, action: Action, name: str) -> tuple[Jump | None, str]:
        """Ask a predictor for a change, opening a trial where none is open.

        Args:
            action: The Predict action.
            name: Registry name of the predictor.

        Returns:
            The change and an empty string, or None and why there is none; then no trial was opened.

        Raises:
            PluginError: There is no such predictor.
        """
        if name not in self._predictors:
            raise PluginError(
                "the controller asks for a predictor that the engine does not have",
                where="controller",
                got=name,
                expected=f"one of {sorted(self._predictors)}",
                fix="name it in predictor.name, or add it to the controller's portfolio",
            )
        opened, counts = self._trials.trial is None, self._counts
        if opened:
            trial = self._trials.open(action, counts.real_steps, counts.cost, counts.predicted_steps)
            trial.predictor = name
            self._history.average(action.averaged)
            self._limiter.forget_weights()
            tentative = self._config.probe.tentative and self._config.phases.predict_mode == "jump"
            if tentative and action.judge == "probe" and not action.continuous:
                trial.before = self._trials.probe(None)
        jump, refusal = self._limited(name, action.horizon, action.longest)
        if jump is None:
            if opened:
                self._trials.close()
            return None, refusal
        assert self._trials.trial is not None
        self._trials.trial.jumps += 1
        return jump, ""

    def leap(self, jump: Jump) -> str | None:
        """Apply a change whole; undo it and say why where the tentative test finds it clearly worse (F81)."""
        jump.apply(self._adapter)
        trial = self._trials.trial
        assert trial is not None
        if trial.before is None or trial.jumps > 1:
            return None
        difference, worse = self._trials.compare(trial.before)
        self._corrections.measured(difference.mean)
        if worse is not None:
            self._adapter.restore(trial.snapshot)
            self._trials.close()
            self._corrections.refused()
        return worse

    def spread(self, jump: Jump) -> None:
        """Leave a change pending, to be applied in shares."""
        trial = self._trials.trial
        watched = self._corrections.watches_shares and trial is not None and trial.by == "probe"
        before = self._trials.probe(None) if watched else None
        self.pending = Shares(jump, self._config.phases.predict_steps, before)

    def share(self, batch: Any) -> float:
        """Apply the next share of the pending change (F21).

        Args:
            batch: Read only where ``phases.forward_every`` asks for a forward pass.

        Returns:
            Loss of the batch after it; NaN where none was measured.

        Raises:
            PredictionError: No change is pending.
        """
        if self.pending is None:
            raise PredictionError(
                "there is no predicted step to take",
                where=f"step {self._counts.real_steps}",
                expected="a Predict phase of mode 'step'",
                fix="ask `needs_backward` before each batch",
            )
        pending = self.pending
        self._apply_share(pending, pending.size)
        pending.done += 1
        loss = math.nan
        every = self._config.phases.forward_every
        if every and pending.done % every == 0:
            loss = float(np.mean(self._adapter.probe_loss(batch)))
            self._counts.cost += FORWARD_COST
        if self._corrections.micro_due(pending.done):
            self._micro_correct(pending, batch)
        self._reporter.predicted_step(loss)
        return loss

    def _apply_share(self, pending: Shares, size: float) -> None:
        pending.jump.apply(self._adapter, size)
        pending.applied += size
        self._counts.predicted_steps += max(0.0, pending.jump.horizon) * size

    def _micro_correct(self, pending: Shares, batch: Any) -> None:
        """Measure where the change has led, and let what is left of it end where the loss is lowest (F31)."""
        if pending.before is not None:
            change = paired_difference(self._trials.probe(None), pending.before).mean
        else:
            change = float(np.mean(self._adapter.probe_loss(batch))) - self._corrections.level
            self._counts.cost += FORWARD_COST
        pending.measured.append((pending.applied, change))
        target = self._corrections.micro(pending.measured)
        left = pending.steps - pending.done
        if left:
            pending.size = (target - pending.applied) / left
        else:
            self._apply_share(pending, target - pending.applied)

    def over(self, loss: float) -> str | None:
        """Why the pending change is over, or None: all shares applied, or a loss above the guard."""
        assert self.pending is not None
        done, steps = self.pending.done, self.pending.steps
        if done >= steps:
            return f"{done} of {steps} shares applied"
        if math.isfinite(loss) and self._trials.trial is not None:
            over = self._trials.over_guard(loss)
            if over is not None:
                return f"early exit after {done} of {steps} predicted steps: {over}"
        return None

    def land(self, reason: str) -> None:
        """End the pending change as far as it was applied."""
        assert self.pending is not None
        pending, self.pending = self.pending, None
        self.landed(pending.jump, reason, share=pending.applied, continuous=False)

    def drop(self, reason: str) -> None:
        """Drop what is left of a pending change; a trial of which nothing was applied is no trial."""
        pending = self.pending
        if pending is None:
            return
        if pending.done:
            self.land(f"{pending.done} of {pending.steps} shares applied: {reason}")
            return
        self.pending = None
        trial = self._trials.trial
        if trial is not None:
            trial.jumps -= 1
            if trial.jumps == 0:
                self._trials.close()

    def landed(self, jump: Jump, reason: str, *, share: float, continuous: bool) -> None:
        """After the whole change: optimizer state, statistics, history, events."""
        self._counts.jumps += 1
        if not continuous:
            self._adapter.after_jump(jump.deltas)
            if "batch-statistics" in self._adapter.capabilities:
                self._adapter.refresh_statistics(self._probes.batches)
            self._history.restart()
        trial = self._trials.trial
        if trial is not None:
            trial.predicted += abs(jump.horizon) * share
        if continuous:
            self._corrections.repeated(jump, trial.predictor if trial is not None else "")
        else:
            self._corrections.landed(jump, share)
        self._reporter.jump(jump, trial.predictor if trial is not None else "", reason, share)

    def state_dict(self) -> dict[str, Any]:
        """The pending change, and the norms that caps are relative to."""
        return {
            "pending": self.pending,
            "norms": dict(self._limiter.weight_norms),
            "strikes": dict(self._strikes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.pending, self._limiter.weight_norms = state["pending"], dict(state["norms"])
        self._strikes = dict(state.get("strikes", {}))

    def _limited(self, name: str, horizon: float, longest: float) -> tuple[Jump | None, str]:
        """The predictor's change within all limits, or None and why there is none."""
        if not self.ready(name):
            return None, f"predictor {name!r} is not ready"
        trial = self._trials.trial
        assert trial is not None
        step = self._counts.real_steps
        try:
            prediction = self._proposed(name, horizon * self._restraint.ratio(step), trial.continuous)
            if prediction is None:
                return None, f"predictor {name!r} failed and is dropped"
            if trial.continuous and trial.first_jump is not None:
                norm = self._history.norm_of(prediction.deltas)
                return self._limiter.repeat(prediction, trial.first_jump, norm), ""
            threshold = self._restraint.threshold(step)
            if prediction.confidence < threshold:
                return None, f"confidence {prediction.confidence:.3f} below the raised {threshold:.3f}"
            if trial.continuous:
                gains = self._corrections.gains(prediction, name)
            else:
                prediction, gains = self._corrections.correct(prediction, name)
            jump = self._limiter.limit(
                prediction, self._adapter, gains, longest=longest, repetition=trial.continuous
            )
            promised = prediction.predicted_loss
            unmoved = trial.loss_level + 0.5 * trial.loss_deviation
            trial.expected_loss = unmoved if promised is None else promised
            trial.first_jump = jump
            self._strikes.pop(name, None)
            return jump, ""
        except PluginFailedError:
            raise
        except HybridCoreError as error:
            logger.warning("predictor %r refused: %s", name, error)
            self._on_error(name, error)
            self._strike(name, error)
            return None, f"predictor {name!r}: {error.what}"

    def ready(self, name: str) -> bool:
        """Whether a predictor could predict now."""
        ready = self._predictors[name].ready
        return self._containment.call(
            "predictor", name, "ready", ready, self._history, otherwise=False, check=bool
        )

    def _proposed(self, name: str, horizon: float, continuous: bool) -> Prediction | None:
        """The predictor's proposal, a sound one; None where the predictor was dropped over it.

        Raises:
            HybridCoreError: It cannot be used, or the predictor says that it has none.
        """
        kept = self._history.versions()
        prediction = self._containment.call(
            "predictor",
            name,
            "predict",
            self.prediction,
            self._predictors[name],
            horizon,
            continuous,
            otherwise=None,
            passes=(HybridCoreError,),
        )
        if self._history.versions() != kept:
            self._history.restart()
            wrote = DeltaError(
                "it wrote into the window means", where="history.window_means", fix="copy before you write"
            )
            self._containment.failed("predictor", name, "predict", wrote)
            return None
        if prediction is None and name in {lost for _, lost in self._containment.dropped}:
            self._history.restart()  # a call that was interrupted may have left half of something there
            return None
        kinds = self._limiter.kinds or self._limiter.note_kinds(self._adapter.read_params())
        return sound_prediction(prediction, self._adapter.layout, kinds)

    def _strike(self, name: str, error: HybridCoreError) -> None:
        """Drop a predictor whose proposals were wrong several times in a row.

        What it raises itself is no strike: it may say that it has too little to go by.
        """
        wrong = error.where is not None and error.where.startswith("prediction")
        if not wrong or not isinstance(error, DeltaError | PredictionError):
            return
        self._strikes[name] = self._strikes.get(name, 0) + 1
        if self._strikes[name] >= STRIKES:
            self._containment.failed("predictor", name, "predict", error)

    def prediction(self, predictor: Predictor, horizon: float, continuous: bool) -> Prediction:
        """The predictor's proposal; measured by probes where it can use them and no step is continuous."""
        if continuous or not len(self._probes):  # first, since it is cheaper than to look at a class
            return predictor.predict(self._history, horizon, self._adapter.xp)
        measures = isinstance(predictor, MeasuringPredictor)
        linearises = isinstance(predictor, LinearisingPredictor) and "residuals" in self._adapter.capabilities
        if not (measures or linearises):
            return predictor.predict(self._history, horizon, self._adapter.xp)
        current = self._adapter.read_params()

        def measure(change: Buckets) -> float:
            weights = tuple(w + d for w, d in zip(current, change, strict=True))
            with self._containment.own_code():
                return float(np.mean(self._trials.probe(weights)))

        if linearises and isinstance(predictor, LinearisingPredictor):

            def linearise(directions: Sequence[Buckets]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
                with self._containment.own_code():
                    return self._trials.linearise(directions)

            return predictor.predict_linearised(self._history, horizon, self._adapter.xp, linearise, measure)
        assert isinstance(predictor, MeasuringPredictor)
        return predictor.predict_with(self._history, horizon, self._adapter.xp, measure)
