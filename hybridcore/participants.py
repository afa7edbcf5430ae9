"""The plugins that take part in a run, each behind a call that may fail (F42)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hybridcore.containment import Containment, Member
from hybridcore.errors import HybridCoreError, PluginError
from hybridcore.foresight import Foresight
from hybridcore.layout import ParamLayout
from hybridcore.predictors.controls import NoPrediction
from hybridcore.protocols import Action, Controller, Outcome, Phase, Predictor, StepRecord
from hybridcore.replies import check_action
from hybridcore.state import EngineState
from hybridcore.substitutes import OnlyTrains

__all__ = ["Participants"]


class Participants:
    """Controller, predictors and dynamics model of one run; one that fails is replaced by a harmless one.

    Args:
        containment: Calls them.
        controller: Chooses actions.
        predictors: By registry name; the first is the default.

    Attributes:
        controller: The one at work now.
        predictors: Those at work now, by registry name.
        foresight: The dynamics model at work; None without one.

    Raises:
        PluginError: There is no predictor.

    Example:
        >>> from hybridcore.controllers.fixed import Fixed
        >>> from hybridcore.predictors.last_update import LastUpdate
        >>> Participants(Containment(), Fixed(), {"last-update": LastUpdate()}).default_predictor
        'last-update'
    """

    def __init__(
        self, containment: Containment, controller: Controller, predictors: Mapping[str, Predictor]
    ) -> None:
        self.controller, self.predictors = controller, dict(predictors)
        if not self.predictors:
            raise PluginError(
                "the engine has no predictor",
                where="predictor.name",
                expected="at least one predictor",
                fix="set predictor.name; `hybridcore plugins list` shows what is installed",
            )
        self.foresight: Foresight | None = None
        self._containment = containment
        containment.substitute |= {"predictor": self._drop_predictor, "controller": self._drop_controller}
        self._observers: list[Member] = []

    @property
    def default_predictor(self) -> str:
        """Registry name of the first predictor."""
        return next(iter(self.predictors))

    @property
    def needs(self) -> set[str]:
        """What the history has to keep for the controller and the predictors."""
        return set(self.controller.needs).union(*(p.needs for p in self.predictors.values()))

    @property
    def windows(self) -> int:
        """Most window means that a predictor wants; 0 where none says."""
        return max(getattr(p, "windows", 0) for p in self.predictors.values())

    def reset(self, layout: ParamLayout, seed: int) -> None:
        """Begin the predictors' run, each with random numbers of its own.

        Typed errors, which say what is wrong with a set-up, pass.
        """
        streams = np.random.SeedSequence(seed).spawn(len(self.predictors))
        for (name, predictor), stream in zip(list(self.predictors.items()), streams, strict=True):
            self._containment.call(
                "predictor",
                name,
                "reset",
                predictor.reset,
                layout,
                np.random.default_rng(stream),
                otherwise=None,
                passes=(HybridCoreError,),
            )
        self._list_observers()

    def foretell_with(self, foresight: Foresight) -> None:
        """Take in a dynamics model, unless it could not even be reset."""
        self.foresight = None if foresight.lost else foresight
        self._containment.substitute["dynamics"] = self._drop_dynamics

    def observe(self, record: StepRecord) -> None:
        """Show a real step that changed the weights to the predictors."""
        self._containment.each("observe", self._observers, record)

    def choose(self, state: EngineState, permitted: Callable[[Phase], object]) -> Action:
        """The controller's action; that of its substitute where it fails.

        Args:
            state: What the controller sees.
            permitted: Raises where the action's phase may not follow.
        """

        def check(action: Action | None) -> None:
            check_action(action, self.predictors)
            assert action is not None
            permitted(action.phase)

        controller, substitute = self.controller, OnlyTrains().choose(state)
        return self._containment.call(
            "controller",
            controller.name,
            "choose",
            controller.choose,
            state,
            otherwise=substitute,
            check=check,
        )

    def proceed(self, state: EngineState) -> bool:
        """Whether the controller lets a pending change go on (F5)."""
        controller = self.controller
        return self._containment.call(
            "controller", controller.name, "proceed", controller.proceed, state, otherwise=False, check=bool
        )

    def feedback(self, outcome: Outcome) -> None:
        """Tell the controller how a trial ended."""
        controller = self.controller
        self._containment.call(
            "controller", controller.name, "feedback", controller.feedback, outcome, otherwise=None
        )

    def _list_observers(self) -> None:
        self._observers = [("predictor", name, p.observe) for name, p in self.predictors.items()]

    def _drop_predictor(self, name: str) -> None:
        self.predictors[name] = NoPrediction()
        self._list_observers()

    def _drop_controller(self, name: str) -> None:
        self.controller = OnlyTrains()

    def _drop_dynamics(self, name: str) -> None:
        self.foresight = None
