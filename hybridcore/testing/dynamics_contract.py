"""Tests that every dynamics model passes; subclass `DynamicsContract` in a test module of your own."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import ClassVar

import array_api_compat.numpy
import numpy as np
import pytest
from numpy.typing import NDArray

from hybridcore.errors import MemoryBudgetError
from hybridcore.plugin_checks import check_class
from hybridcore.protocols import Action, Dynamics, Phase, Rollout, StepOutcome, StepRecord
from hybridcore.state import Statistics
from hybridcore.testing.backends import Backend

__all__ = ["DynamicsContract"]

FULL = Action(Phase.FULL, 1, "")
JUMP = Action(Phase.PREDICT, 0, "", predictor="drift", horizon=20.0)


class DynamicsContract:
    """Each sentence of the `Dynamics` protocol as a test, on a loss that falls exponentially under noise.

    Subclass it, name the subclass ``Test...``, and write `make`.

    Attributes:
        steps: Observations after which the model must have learned something.
        updates: Training updates after each tenth observation.
        memory_bytes: Memory that it may use.

    Example:
        >>> from hybridcore.dynamics.linear import Linear
        >>> class TestLinear(DynamicsContract):
        ...     def make(self):
        ...         return Linear()
    """

    steps: ClassVar[int] = 160
    updates: ClassVar[int] = 2
    memory_bytes: ClassVar[int] = 50 << 20

    def make(self) -> Dynamics:
        """A new instance of the model under test."""
        raise NotImplementedError("write make() in the subclass")

    @pytest.fixture(params=list(Backend), ids=str)
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        """Each array namespace that is installed."""
        chosen: Backend = request.param
        pytest.importorskip(chosen.package)
        return chosen

    def prepared(self, seed: int = 3, xp: ModuleType = array_api_compat.numpy) -> Dynamics:
        """A new instance, reset with a seed."""
        model = self.make()
        model.reset(["drift", "average"], np.random.default_rng(seed), xp, self.memory_bytes)
        return model

    def show(
        self,
        model: Dynamics,
        *,
        factor: float = 1.0,
        seconds: float = 0.01,
        updates: int | None = None,
        steps: int | None = None,
    ) -> NDArray[np.float64]:
        """Play the run to the model and train it; the features of its end."""
        rng, statistics = np.random.default_rng(0), Statistics()
        features: NDArray[np.float64] | None = None
        for step in range(1, (steps or self.steps) + 1):
            noise = 1.0 + 0.02 * float(rng.standard_normal())
            loss = factor * (0.5 + 2.0 * float(np.exp(-step / 60.0))) * noise
            if features is not None:
                model.observe(features, JUMP if step % 40 == 0 else FULL, StepOutcome(loss, seconds))
            statistics.observe(StepRecord(step, Phase.FULL, loss, factor, 0.1, seconds))
            features = statistics.features(
                phase=Phase.FULL, phase_progress=0.0, progress=0.0, straightness=0.5, moments={}
            )
            if step % 10 == 0:
                model.train(self.updates if updates is None else updates)
        assert features is not None
        return features

    def taught(self, seed: int = 3) -> tuple[Dynamics, NDArray[np.float64]]:
        """A trained model and the features of now."""
        model = self.prepared(seed)
        return model, self.show(model)

    def test_class_keeps_the_protocol(self) -> None:
        """Name, version, methods and their parameters, and Config."""
        check_class("dynamics", type(self.make()), "DynamicsContract")

    def test_works_in_every_namespace(self, backend: Backend) -> None:
        """It learns and forecasts in any Array API namespace, with results of NumPy."""
        model = self.prepared(xp=backend.namespace())
        rollout = model.rollout(self.show(model, updates=1, steps=40), FULL, 4)
        for values in (rollout.mean, rollout.epistemic, rollout.aleatoric, rollout.seconds):
            assert isinstance(values, np.ndarray) and values.shape == (4,)

    def test_rollout_is_sound(self) -> None:
        """Finite losses, no negative variance, confidence in [0, 1], seconds as seen, for any horizon."""
        model, features = self.taught()
        for horizon in (1, 5, 40):
            for action in (FULL, JUMP):
                rollout = model.rollout(features, action, horizon)
                assert rollout.mean.shape == (horizon,)
                assert np.isfinite(rollout.mean).all()
                assert (rollout.epistemic >= 0.0).all() and (rollout.aleatoric >= 0.0).all()
                assert 0.0 <= rollout.confidence <= 1.0
                assert model.confidence == rollout.confidence
                np.testing.assert_allclose(rollout.seconds, 0.01)
                low, high = rollout.interval()
                assert (low <= rollout.mean).all() and (rollout.mean <= high).all()

    def test_an_untrained_model_has_no_confidence(self) -> None:
        """Confidence is 0 before any forecast was compared with what came."""
        model = self.prepared()
        assert model.confidence == 0.0
        assert model.rollout(np.zeros(28), FULL, 3).confidence == 0.0

    def test_observing_counts_and_learns_nothing(self) -> None:
        """`samples` grows by observing; forecasts change by training."""
        model = self.prepared()
        features = self.show(model, updates=0)
        assert model.samples > self.steps // 2
        before = model.rollout(features, FULL, 5).mean
        assert model.train(3) > 0
        assert (model.rollout(features, FULL, 5).mean != before).any()

    def test_the_action_matters(self) -> None:
        """Different actions give different forecasts."""
        model, features = self.taught()
        means = {tuple(model.rollout(features, action, 5).mean) for action in (FULL, JUMP)}
        assert len(means) == 2

    def test_losses_may_have_any_scale(self) -> None:
        """All losses times 1024: means times 1024, variances times its square, equal confidence (F17)."""
        model, features = self.taught()
        large = self.prepared()
        large_features = self.show(large, factor=1024.0)
        one, other = model.rollout(features, FULL, 6), large.rollout(large_features, FULL, 6)
        np.testing.assert_allclose(other.mean, 1024.0 * one.mean, rtol=1e-3)
        np.testing.assert_allclose(other.epistemic, 1024.0**2 * one.epistemic, rtol=0.05)
        np.testing.assert_allclose(other.aleatoric, 1024.0**2 * one.aleatoric, rtol=0.05)
        assert abs(other.confidence - one.confidence) < 0.02

    def test_same_seed_gives_the_same_forecast_whatever_the_clock(self) -> None:
        """Bit for bit, even if steps take other times (F72)."""
        first, features = self.taught()
        second = self.prepared()
        self.show(second, seconds=5.0)
        _assert_equal(first.rollout(features, JUMP, 6), second.rollout(features, JUMP, 6))

    def test_asking_changes_nothing(self) -> None:
        """A rollout leaves what is learned, and later rollouts, as they are."""
        model, features = self.taught()
        first = model.rollout(features, FULL, 6)
        model.rollout(features, JUMP, 20)
        _assert_equal(model.rollout(features, FULL, 6), first)

    def test_state_round_trip(self) -> None:
        """An heir with the state goes on bit for bit, training included (F53)."""
        model, features = self.taught()
        state = copy.deepcopy(model.state_dict())
        heir = self.prepared(seed=99)
        heir.load_state_dict(state)
        for one in (model, heir):
            one.observe(features, FULL, StepOutcome(0.6, 0.01))
            one.train(2)
        _assert_equal(heir.rollout(features, FULL, 6), model.rollout(features, FULL, 6))
        assert heir.samples == model.samples

    def test_reset_forgets(self) -> None:
        """After `reset`, a used instance is a new one."""
        used, _ = self.taught()
        used.reset(["drift", "average"], np.random.default_rng(3), array_api_compat.numpy, self.memory_bytes)
        assert used.samples == 0 and used.confidence == 0.0
        features = self.show(used)
        _assert_equal(used.rollout(features, FULL, 6), self.taught()[0].rollout(features, FULL, 6))

    def test_memory_stays_inside_its_budget(self) -> None:
        """`nbytes` never exceeds the budget, fewer samples are kept; too little is an error (F51)."""
        model = self.prepared()
        rng = np.random.default_rng(3)
        least = _least_budget(model)
        model.reset(["drift", "average"], rng, array_api_compat.numpy, least)
        self.show(model, updates=1)
        assert model.nbytes <= least
        assert 0 < model.samples < self.steps
        with pytest.raises(MemoryBudgetError):
            model.reset(["drift", "average"], rng, array_api_compat.numpy, 1000)

    def test_a_break_is_no_consequence(self) -> None:
        """After `interrupt`, no forecast made before is held against the losses that follow."""
        model, features = self.taught()
        model.interrupt()
        model.observe(features, FULL, StepOutcome(1e6, 0.01))
        before = model.rollout(features, FULL, 8).confidence
        model.train(0)
        assert model.rollout(features, FULL, 8).confidence == before


def _least_budget(model: Dynamics) -> int:
    """Smallest budget that fits, to 256 bytes, by bisection."""
    low, high = 0, 64 << 20
    while high - low > 256:
        middle = (low + high) // 2
        try:
            model.reset(["drift", "average"], np.random.default_rng(3), array_api_compat.numpy, middle)
            high = middle
        except MemoryBudgetError:
            low = middle
    return high


def _assert_equal(got: Rollout, expected: Rollout) -> None:
    np.testing.assert_array_equal(got.mean, expected.mean)
    np.testing.assert_array_equal(got.epistemic, expected.epistemic)
    np.testing.assert_array_equal(got.aleatoric, expected.aleatoric)
    assert got.confidence == expected.confidence
