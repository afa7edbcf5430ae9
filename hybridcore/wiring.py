"""What an engine is made of, built from the configuration and connected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import array_api_compat.numpy as compat_numpy
import attrs

from hybridcore.averaging import RunningAverage
from hybridcore.budget import Budget
from hybridcore.clock import Stopwatch
from hybridcore.config import HybridConfig
from hybridcore.containment import Containment
from hybridcore.correction.keeper import CorrectionKeeper
from hybridcore.correction.none import NoCorrection
from hybridcore.counts import Counts
from hybridcore.divergence import DivergenceWatch, build_monitors
from hybridcore.errors import MemoryBudgetError
from hybridcore.events import Event, EventBus
from hybridcore.foresight import Foresight
from hybridcore.history import History
from hybridcore.judgement import Judge
from hybridcore.kernels import ChosenKernels
from hybridcore.leaps import Leaps
from hybridcore.memory import Memory, budget_bytes
from hybridcore.participants import Participants
from hybridcore.phases import PhaseMachine
from hybridcore.probes import ProbeSet
from hybridcore.protocols import Adapter, Corrector, Dynamics, Monitor
from hybridcore.ranks import Ranks, Timed
from hybridcore.rates import RateControl
from hybridcore.reach import Reach
from hybridcore.readout import ReadOut
from hybridcore.recovery import Recovery
from hybridcore.reporting import Reporter
from hybridcore.rest import Rest
from hybridcore.rewind import Rewind
from hybridcore.state import Statistics
from hybridcore.transitions import Transitions
from hybridcore.trials import TrialKeeper
from hybridcore.view import View

__all__ = ["Wiring", "wire"]


@attrs.frozen(eq=False)
class Wiring:
    """The parts of one engine.

    Attributes:
        ranks: What the processes of the run agree on.
        machine: Phases and their rules.
        statistics: Losses and rates so far.
        probes: Held-out examples.
        budget: What trying may cost.
        average: Running average of the weights; None where none is kept.
        read_out: Chooses between the weights and their average; None without one.
        memory: What leaves the device.
        history: What is remembered of the weights.
        reach: How far predictions may go; None where nobody asks.
        counts: Counters.
        reporter: Tells what happens.
        rates: Changes the learning rate.
        trials: Opens and closes trials.
        corrections: Learns from what became of predictions.
        recovery: Acts on divergence.
        leaps: Proposes and applies changes.
        transitions: Enters phases.
        judge: Ends trials.
        view: What the controller sees.
        rest: When the history sleeps.
    """

    ranks: Ranks
    machine: PhaseMachine
    statistics: Statistics
    probes: ProbeSet
    budget: Budget
    average: RunningAverage | None
    read_out: ReadOut | None
    memory: Memory
    history: History
    reach: Reach | None
    counts: Counts
    reporter: Reporter
    rates: RateControl
    trials: TrialKeeper
    corrections: CorrectionKeeper
    recovery: Recovery
    leaps: Leaps
    transitions: Transitions
    judge: Judge
    view: View
    rest: Rest


def wire(
    adapter: Adapter,
    config: HybridConfig,
    participants: Participants,
    containment: Containment,
    *,
    probes: Iterable[Any],
    events: EventBus,
    clock: Stopwatch,
    corrector: Corrector | None,
    monitors: Iterable[Monitor] | None,
    dynamics: Dynamics | None,
    kernels: ChosenKernels,
) -> Wiring:
    """Build the parts of an engine.

    Args:
        adapter: Model and optimizer.
        config: The whole configuration.
        participants: Controller and predictors; the dynamics model joins them here.
        containment: Calls plugins.
        probes: Held-out batches.
        events: Who hears what happens.
        clock: Training time.
        corrector: Learns from residuals and corrects; nothing is corrected if None.
        monitors: Watch for divergence; those that the configuration names if None.
        dynamics: Foretells the loss; nothing does if None.
        kernels: Who does the arithmetic.

    Raises:
        HybridCoreError: The parts do not fit each other, the model or the memory budget.
    """
    predictors, controller = participants.predictors, participants.controller
    ranks, machine, statistics = Ranks(adapter), PhaseMachine(config.phases), Statistics()
    held_out, budget = ProbeSet(probes, config.probe.batches), Budget(config.budget)
    ranks.require_alike(config, len(held_out))
    average = RunningAverage(config.average) if config.average.enabled else None
    corrector = corrector if corrector is not None else NoCorrection()
    apart = RunningAverage.reserved_bytes(adapter) if average is not None else 0
    apart += CorrectionKeeper.reserved_bytes(adapter, corrector)
    memory = Memory(adapter, config.memory)
    reserved = apart + adapter.snapshot_nbytes()  # none where they leave the device
    available, windows = budget_bytes(config.history, adapter), participants.windows
    history = History(
        adapter.layout,
        adapter.xp,
        config.history,
        participants.needs,
        reserved,
        windows,
        ranks.kernels(kernels),
        available,
        ranks.least,
        memory,
    )
    participants.reset(adapter.layout, config.run.seed)
    reach = Reach(adapter.xp) if "reach" in history.needs else None
    counts = Counts()
    events.step = lambda: counts.real_steps
    reporter = Reporter(events, clock, counts, config.metrics)
    rates = RateControl(adapter)

    def on_probe(examples: int, loss: float, cost: float) -> None:
        counts.cost += cost
        reporter.emit(Event.PROBE, examples=examples, loss=loss, cost=cost)

    trials = TrialKeeper(
        adapter, config, history, statistics, held_out, budget, reach, on_probe, apart, rates, ranks
    )
    corrections = CorrectionKeeper(
        adapter,
        config,
        corrector,
        history,
        statistics,
        trials,
        budget,
        counts,
        reporter,
        ranks,
        containment,
    )
    watch = DivergenceWatch(
        build_monitors(config.divergence) if monitors is None else monitors, config.divergence, containment
    )
    transitions = Transitions(
        config.phases, machine, reporter, trials, corrections, lambda reason: leaps.drop(reason)
    )
    host = Rewind(
        trials,
        history,
        statistics,
        reach,
        average,
        budget,
        counts,
        reporter,
        apart,
        lambda reason: judge.fail(reason),
        transitions.force_full,
        transitions.enter_full,
    )
    recovery = Recovery(adapter, config, watch, predictors, rates, reporter, host, containment)
    recovery.states.agree = ranks.all_true

    def release(error: MemoryBudgetError) -> None:
        """Give the good states' memory to a trial: predictions are what the memory was asked for."""
        recovery.states.give_up(error)
        trials.reserved = apart

    trials.release = release
    leaps = Leaps(
        adapter,
        config,
        predictors,
        history,
        held_out,
        trials,
        corrections,
        counts,
        reporter,
        recovery.restraint,
        recovery.refused,
        containment,
    )
    if dynamics is not None:
        foresight = Foresight(
            dynamics,
            config,
            adapter,
            statistics,
            history,
            machine,
            counts,
            list(predictors),
            compat_numpy,
            containment,
        )
        foresight.keeper.agree = ranks.mean
        participants.foretell_with(foresight)
    if ranks.many and isinstance(controller, Timed):
        controller.clock = ranks.clock

    def make_sound() -> None:
        """Undo an open trial before an error leaves the engine."""
        leaps.pending = None
        if trials.trial is not None:
            trials.undo(proven=True)

    containment.make_sound = make_sound
    judge = Judge(
        adapter,
        config.phases,
        trials,
        statistics,
        history,
        average,
        budget,
        counts,
        reporter,
        corrections,
        leaps,
        recovery,
        participants,
        transitions,
    )
    view = View(
        adapter,
        participants,
        machine,
        statistics,
        history,
        reach,
        held_out,
        trials,
        budget,
        counts,
        leaps,
        recovery.restraint,
    )
    read_out = None
    if average is not None:
        read_out = ReadOut(
            config.average, adapter, average, lambda: held_out.batches, counts, lambda: trials.examples
        )
    lead = max(3, windows) * history.window + config.phases.full_steps
    transitions.settle_warmup()
    containment.watchdog.stop()  # the next call starts it again
    return Wiring(
        ranks=ranks,
        machine=machine,
        statistics=statistics,
        probes=held_out,
        budget=budget,
        average=average,
        read_out=read_out,
        memory=memory,
        history=history,
        reach=reach,
        counts=counts,
        reporter=reporter,
        rates=rates,
        trials=trials,
        corrections=corrections,
        recovery=recovery,
        leaps=leaps,
        transitions=transitions,
        judge=judge,
        view=view,
        rest=Rest(history, machine, trials, budget, counts, lead),
    )
