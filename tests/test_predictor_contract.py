"""Every built-in predictor passes the contract, and the contract catches predictors that break it."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from hybridcore.errors import PluginError
from hybridcore.history import History
from hybridcore.plugins import load_registry
from hybridcore.predictors.anderson import Anderson
from hybridcore.predictors.average import Average
from hybridcore.predictors.controls import Frozen, NoPrediction, RandomJump
from hybridcore.predictors.drift import Drift
from hybridcore.predictors.gauss_newton import GaussNewton
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.predictors.latent import Latent
from hybridcore.predictors.outer_momentum import OuterMomentum
from hybridcore.predictors.spectral import Spectral
from hybridcore.predictors.subspace_newton import SubspaceNewton
from hybridcore.protocols import Prediction
from hybridcore.testing import Backend, PredictorContract
from hybridcore.testing.trajectories import layout_of_two_buckets, straight_line, synthetic_history


class TestLastUpdate(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> LastUpdate:
        return LastUpdate()


class TestGaussNewton(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> GaussNewton:
        return GaussNewton()


class TestDrift(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> Drift:
        return Drift()


class TestDriftFromMean(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> Drift:
        return Drift(Drift.Config(anchor="mean", pairs=2))


class TestNoPrediction(PredictorContract):
    predicts = False

    def make(self) -> NoPrediction:
        return NoPrediction()


class TestFrozen(PredictorContract):
    def make(self) -> Frozen:
        return Frozen()


class TestRandomJump(PredictorContract):
    def make(self) -> RandomJump:
        return RandomJump()


class TestOuterMomentum(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> OuterMomentum:
        return OuterMomentum()


class TestOuterMomentumOfOwnLength(PredictorContract):
    chooses_length = True

    def make(self) -> OuterMomentum:
        return OuterMomentum(OuterMomentum.Config(length="own"))


class TestEmaMomentum(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> OuterMomentum:
        return OuterMomentum(OuterMomentum.Config(mode="ema"))


class TestLookahead(PredictorContract):
    chooses_length = True

    def make(self) -> OuterMomentum:
        return OuterMomentum(OuterMomentum.Config(mode="lookahead"))


class TestAverage(PredictorContract):
    chooses_length = True

    def make(self) -> Average:
        return Average()


class TestSpectral(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> Spectral:
        return Spectral()


class TestAnderson(PredictorContract):
    def make(self) -> Anderson:
        return Anderson()


class TestLatent(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> Latent:
        return Latent()


class TestSubspaceNewton(PredictorContract):
    exact_on_straight_line = True

    def make(self) -> SubspaceNewton:
        return SubspaceNewton()


def test_every_builtin_predictor_runs_the_contract() -> None:
    tested = {cls().make().name for cls in PredictorContract.__subclasses__() if cls.__module__ == __name__}
    builtin = {n for n, c in load_registry().predictors.items() if c.__module__.startswith("hybridcore.")}
    assert builtin <= tested


class WritesHistory(LastUpdate):
    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        for bucket in history.last_update():
            bucket *= horizon
        return Prediction(history.last_update(), horizon, 1.0)


class Unseeded(LastUpdate):
    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        scale = float(np.random.default_rng().random())
        return Prediction(history.last_update(), horizon, 1.0, scale=scale)


class Counts(LastUpdate):
    """Keeps a count that neither its state nor reset knows of."""

    count = 0

    def observe(self, record: object) -> None:
        self.count += 1

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        return Prediction(history.last_update(), horizon, 1.0, scale=float(self.count))


class Eager(LastUpdate):
    def ready(self, history: History) -> bool:
        return True


class Float64(LastUpdate):
    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        deltas = tuple(xp.astype(b, xp.float64) for b in history.last_update())
        return Prediction(deltas, horizon, 1.0)


class Boastful(LastUpdate):
    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        return Prediction(history.last_update(), horizon, 1.5)


class Halved(LastUpdate):
    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        return Prediction(history.last_update(), horizon, 1.0, scale=horizon / 2)


@pytest.mark.parametrize(
    ("cls", "test", "backend"),
    [
        (WritesHistory, "test_history_is_not_written_to", Backend.NUMPY),
        (WritesHistory, "test_deltas_fit_the_layout", Backend.NUMPY_READ_ONLY),
        (WritesHistory, "test_history_is_not_written_to", Backend.TORCH),
        (Unseeded, "test_same_seed_gives_the_same_prediction", Backend.NUMPY),
        (Counts, "test_state_round_trip", Backend.STRICT),
        (Counts, "test_reset_forgets", Backend.NUMPY),
        (Eager, "test_not_ready_without_history", Backend.NUMPY),
        (Float64, "test_deltas_fit_the_layout", Backend.TORCH),
        (Boastful, "test_statement_is_sound", Backend.NUMPY),
        (Halved, "test_constant_steps_are_continued", Backend.NUMPY),
    ],
)
def test_contract_catches(cls: type[LastUpdate], test: str, backend: Backend) -> None:
    pytest.importorskip(backend.package)

    class Suite(PredictorContract):
        exact_on_straight_line = True

        def make(self) -> LastUpdate:
            return cls()

    with pytest.raises((AssertionError, ValueError)):
        getattr(Suite(), test)(backend, layout_of_two_buckets())


def test_contract_catches_an_ill_formed_class() -> None:
    class Suite(PredictorContract):
        def make(self) -> LastUpdate:
            return type("Nameless", (LastUpdate,), {"name": ""})()

    with pytest.raises(PluginError, match="registry name"):
        Suite().test_class_keeps_the_protocol()


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_synthetic_history_has_the_means_of_a_straight_line(backend: Backend) -> None:
    pytest.importorskip(backend.package)
    layout = layout_of_two_buckets()
    path = straight_line(layout.total, 12)
    history = synthetic_history(backend.namespace(), layout, path, protect=backend.protect)
    got = [np.concatenate([backend.to_numpy(b) for b in mean]) for mean in history.window_means]
    expected = [np.mean(np.asarray(path[i : i + 4], dtype=np.float64), axis=0) for i in (1, 5, 9)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    update = np.concatenate([backend.to_numpy(b) for b in history.last_update()])
    np.testing.assert_array_equal(update, path[12].astype(np.float64) - path[11])
