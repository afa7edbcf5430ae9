"""Changes of phase: entered by the rules, announced, and with what they end."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from hybridcore.config import PhasesConfig
from hybridcore.correction.keeper import CorrectionKeeper
from hybridcore.phases import PhaseMachine
from hybridcore.protocols import Phase
from hybridcore.reporting import Reporter
from hybridcore.trials import TrialKeeper

__all__ = ["Transitions"]


@attrs.frozen(eq=False)
class Transitions:
    """Enters phases.

    Attributes:
        config: Lengths of phases.
        machine: Holds the rules.
        reporter: Hears of phases.
        trials: Tell whether a phase is one of many in a continuous trial.
        corrections: Forget what they measure after a rollback.
        drop: Drops what is left of a pending change, for a reason.
    """

    config: PhasesConfig
    machine: PhaseMachine
    reporter: Reporter
    trials: TrialKeeper
    corrections: CorrectionKeeper
    drop: Callable[[str], None]

    def settle_warmup(self) -> None:
        """Without warm-up steps, the first batch is already a Full one."""
        if self.machine.at_boundary:
            self.machine.enter(Phase.FULL, self.config.full_steps)

    @property
    def in_continuous_trial(self) -> bool:
        """Whether a trial is open whose jumps follow each real step, after its first jump."""
        trial = self.trials.trial
        return trial is not None and trial.continuous and trial.jumps > 1

    def enter(self, phase: Phase, length: int, reason: str, *, quiet: bool = False) -> None:
        """Enter a phase for `length` batches; a quiet one is not announced.

        Raises:
            PhaseTransitionError: It may not follow the current phase; nothing changes.
        """
        left = self.machine.phase
        self.machine.enter(phase, length)
        if quiet:
            return
        self.reporter.phase_end(left.value)
        self._announce(reason, routine=phase is Phase.FULL and self.in_continuous_trial)

    def enter_full(self, reason: str) -> bool:
        """Begin a Full phase after a rollback, unless warm-up or a forced block has to go on."""
        self.corrections.forget()
        begins = self.machine.phase is not Phase.WARMUP and not self.machine.forced_full_left
        if begins:
            self.enter(Phase.FULL, self.config.full_steps, reason)
        return begins

    def force_full(self, steps: int) -> None:
        """Make the next `steps` batches Full (F8); what is left of a pending change is dropped."""
        left = self.machine.phase
        self.machine.force_full(steps)
        self.drop("a Full block is forced")
        self.reporter.phase_end(left.value)
        self._announce("a Full block is forced")

    def _announce(self, reason: str, *, routine: bool = False) -> None:
        self.reporter.phase_start(self.machine.phase.value, self.machine.length, reason, routine=routine)
