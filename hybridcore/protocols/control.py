"""What a controller is told and decides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import attrs

from hybridcore.protocols.steps import Phase

if TYPE_CHECKING:
    from hybridcore.state import EngineState

__all__ = ["Action", "Controller", "Outcome"]


@attrs.frozen(slots=True)
class Action:
    """What a controller wants next.

    Attributes:
        phase: Phase to enter. FULL and CORRECT take real steps; PREDICT applies a predicted change.
        length: Batches the phase lasts: real steps (FULL, CORRECT) or predicted steps (PREDICT, mode "step").
        reason: One line for the trace.
        predictor: Registry name; PREDICT only.
        horizon: Optimizer steps the change should be worth; PREDICT only.
        settle: Real steps from the first jump of a trial to its verdict; PREDICT only. Later jumps inside
            an open trial belong to it.
        judge: How the verdict is taken: ``"probe"`` (paired losses of window-averaged weights) or
            ``"guard"`` (only the one-sided loss guard; costs no forward passes).
        continuous: The jump follows every real step of the trial, so that the path has no break: windows
            run across it, and the optimizer's state needs no adjustment.
        averaged: Whether window means are kept during the trial; a controller that judges only some trials
            of a row by probe needs them there and in the trial before.
        observe: Whether the history watches the phase's real steps; None leaves that to the engine.
        longest: Largest norm of one change over the norm of the weights; PREDICT only, as the trial opens.
            The caps of table ``[groups]`` hold too.
    """

    phase: Phase
    length: int
    reason: str
    predictor: str | None = None
    horizon: float = 0.0
    settle: int = 0
    judge: str = "probe"
    continuous: bool = False
    averaged: bool = True
    observe: bool | None = None
    longest: float = math.inf


@attrs.frozen(slots=True)
class Outcome:
    """How a trial, or a refused jump, ended.

    Attributes:
        kept: The jumps stand; False means refused or rolled back.
        predictor: Which predictor proposed them.
        horizon: Horizon asked for, per jump.
        jumps: Jumps applied in the trial.
        real_steps: Real steps of the trial.
        gain: Loss below the reference curve at equal cost (positive is good); NaN without a probe.
        gain_error: Standard error of `gain`; NaN without a probe.
        credit_steps: `gain` in step equivalents of the reference curve's slope; 0 when not kept.
        credit_seconds: The same in seconds.
        straightness: Cosine between the last two window displacements; NaN when not known.
        reason: One line.
        behind_steps: Real steps that a kept trial is behind the reference curve; 0 where it is not.
        falling: The probe loss is clearly below that before the jump.
        overfitted: The probe loss is clearly above the training loss.
    """

    kept: bool
    predictor: str
    horizon: float
    jumps: int
    real_steps: int
    gain: float
    gain_error: float
    credit_steps: float
    credit_seconds: float
    straightness: float
    reason: str
    behind_steps: float = 0.0
    falling: bool = False
    overfitted: bool = False


@runtime_checkable
class Controller(Protocol):
    """Chooses the next action at each phase boundary. ``Config`` keys live in ``[controller.<name>]``.

    The class carries ``needs`` like a predictor does.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    needs: ClassVar[frozenset[str]]

    def choose(self, state: EngineState) -> Action:
        """Next action; the phase machine may turn a PREDICT into FULL when the rules say so."""
        ...

    def proceed(self, state: EngineState) -> bool:
        """Whether a Predict phase in mode ``"step"`` goes on; asked before each predicted step (F5)."""
        ...

    def feedback(self, outcome: Outcome) -> None:
        """Hear how a trial, or a refused jump, ended."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...
