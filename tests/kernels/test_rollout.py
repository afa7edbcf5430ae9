"""F13, F66, F70: who rolls the dynamics model `rssm` out, and that its forecasts are the same by either."""

from __future__ import annotations

import logging

import array_api_compat.numpy as xp
import attrs
import numpy as np
import pytest
from dynamics_lab import REAL, fresh
from engine_lab import bowl, build, configure

from hybridcore.config import DynamicsConfig, HybridConfig, KernelsConfig
from hybridcore.dynamics.categorical import gumbel
from hybridcore.dynamics.rssm import Rssm, RssmOptions
from hybridcore.engine import Engine
from hybridcore.kernels import REFERENCE, ChosenKernels, ReferenceKernels, choose
from hybridcore.kernels.paths import RolloutCase
from hybridcore.kernels.ranked import RankedKernels
from hybridcore.kernels.trial import Sample, same
from hybridcore.plugins import load_registry
from hybridcore.protocols import Ensemble, RolloutSizes, StepOutcome, UsesKernels
from hybridcore.reference import quadratic

TINY = {
    "deterministic": 6,
    "hidden": 5,
    "stochastic": 2,
    "classes": 3,
    "samples": 2,
    "members": 2,
    "context": 1,
}
SIZES = RolloutSizes(features=4, actions=3, horizon=2, **TINY)


class Noting(ReferenceKernels):
    """Right, and notes what it was asked."""

    name = "noting"
    asked = []

    def rollout(self, *arguments):
        type(self).asked.append(arguments)
        return super().rollout(*arguments)


class Off(ReferenceKernels):
    """Off by `share` of the largest step."""

    name = "off"
    share = 0.0

    def rollout(self, *arguments):
        steps, raws = super().rollout(*arguments)
        return steps, raws + np.float32(self.share * np.abs(raws).max())


class Failing(ReferenceKernels):
    name = "failing"

    def rollout(self, *arguments):
        raise MemoryError("no room")


@pytest.fixture
def accelerator():
    adapter = quadratic(seed=0)
    adapter.device = "fake:0"
    return adapter


@pytest.fixture
def model():
    made = fresh(Rssm(RssmOptions(**TINY)))
    for t in range(20):
        made.observe(np.full(28, 0.1 * t), REAL, StepOutcome(1.0 / (t + 1), 0.01))
    return made


def test_noise_drawn_at_once_is_that_of_single_draws():
    """So that what a seed gives does not depend on how many numbers are asked for at a time."""
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    at_once = gumbel(one, (7, 2, 3, 4))
    np.testing.assert_array_equal(at_once, [gumbel(other, (2, 3, 4)) for _ in range(7)])


def test_a_near_tie_between_classes_is_found():
    """Scores made equal by hand: the noise of one class is what the other's score is ahead by."""
    case = RolloutCase.make(SIZES, seed=1)
    assert not case.undecided().any()
    zeros = {n: np.zeros_like(a) for n, a in case.models.weights.items()}
    zeros["trunk"] = case.models.weights["trunk"]
    zeros["head"] = case.models.weights["head"]
    noise = case.noise.copy()
    noise[-1, 1, 0, :3] = (0.5, -1.0, 0.5 + 3e-6)  # equal logits: noise alone decides
    tied = attrs.evolve(case, models=Ensemble(zeros, 3), noise=noise)
    np.testing.assert_array_equal(tied.undecided(), [[False, False], [True, False]])


@pytest.mark.parametrize(("share", "right"), [(1e-6, True), (3e-4, False), (float("nan"), False)])
def test_f70_a_rollout_is_right_within_1e_4_of_float64(accelerator, share, right):
    Off.share = share
    sample = Sample.make(xp, np.zeros(4, np.float32), 100, SIZES)
    assert same(sample, "rollout", sample.calls["rollout"](Off())) is right
    chosen = choose("off", {"off": Off}, accelerator, sizes=SIZES)
    assert chosen.used("rollout") == ("off" if right else "reference")
    assert chosen.used("combine") == "off"


def test_f70_a_rollout_that_is_slower_stays_with_the_reference(accelerator, monkeypatch):
    """By a clock that the kernels themselves move."""
    import hybridcore.kernels.trial as trial

    now = [0.0]
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    right = ReferenceKernels.rollout

    def taking(cost):
        def rollout(self, *arguments):
            now[0] += cost
            return right(self, *arguments)

        return rollout

    monkeypatch.setattr(ReferenceKernels, "rollout", taking(1.0))
    for cost, winner in ((2.0, "reference"), (0.5, "other")):
        other = type("Other", (ReferenceKernels,), {"name": "other", "rollout": taking(cost)})
        chosen = choose("auto", {"other": other}, accelerator, sizes=SIZES)
        assert chosen.used("rollout") == winner
        (entry,) = [c for c in chosen.choices if c.operation == "rollout"]
        assert (entry.seconds, entry.reference_seconds) == (cost, 1.0)


def test_a_run_without_such_a_model_tries_no_rollout(accelerator, monkeypatch):
    monkeypatch.setattr(Noting, "asked", [])
    chosen = choose("noting", {"noting": Noting}, accelerator, sizes=None)
    assert not Noting.asked and chosen.used("rollout") == "reference" and chosen.used("gram") == "noting"
    assert "nothing in this run" in chosen.summary()["operations"]["rollout"]


def test_the_trial_is_made_at_the_sizes_that_the_model_rolls_out_at(model, monkeypatch):
    monkeypatch.setattr(Noting, "asked", [])
    assert isinstance(model, UsesKernels)
    model.kernels = Noting()
    model.rollout(np.zeros(28), REAL, model.options.longest)
    RolloutCase.make(model.rollout_sizes(len(model._encoder.predictors))).on(model.kernels)
    own, tried = (
        [{n: a.shape for n, a in models.weights.items()}, models.classes, *(a.shape for a in given)]
        for models, *given, _ in Noting.asked
    )
    assert own == tried


def test_f66_a_kernel_that_fails_in_a_run_changes_no_forecast(model, caplog):
    right = model.rollout(np.ones(28), REAL, 6)
    model.kernels = chosen = ChosenKernels({"rollout": Failing()})
    with caplog.at_level(logging.WARNING, "hybridcore"):
        again = [model.rollout(np.ones(28), REAL, 6) for _ in range(2)]
    for found in again:
        np.testing.assert_array_equal(found.mean, right.mean)
        np.testing.assert_array_equal(found.epistemic, right.epistemic)
    assert len(caplog.records) == 1 and "no room" in chosen.failure and chosen.used("rollout") == "reference"


def test_an_ensemble_is_new_where_the_weights_are(model, monkeypatch):
    """A kernel set keeps a copy of an ensemble's weights, so that none may outlive them."""
    monkeypatch.setattr(Noting, "asked", [])
    model.kernels = Noting()
    for _ in range(2):
        model.rollout(np.zeros(28), REAL, 2)
    model.load_state_dict(model.state_dict())
    model.rollout(np.zeros(28), REAL, 2)
    first, second, third = (models for models, *_ in Noting.asked)
    assert first is second is not third and third.weights is model._params


def test_the_engine_gives_the_model_the_kernels_of_the_run(monkeypatch):
    registry = load_registry()
    object.__setattr__(registry, "kernels", {**registry.kernels, "noting": Noting})
    adapter = quadratic(seed=0)
    adapter.device = "fake:0"
    config = HybridConfig(
        kernels=KernelsConfig(name="noting"), dynamics=DynamicsConfig(name="rssm", options={"rssm": TINY})
    )
    engine = Engine.from_config(adapter, config, registry=registry)
    assert engine.foresight.keeper.model.kernels is engine.kernels
    assert engine.summary()["kernels"]["operations"]["rollout"] == "noting: asked for, and right"
    alone = Engine.from_config(quadratic(seed=0), HybridConfig(), registry=registry)
    assert alone.kernels.used("rollout") == "reference"


def test_f71_all_ranks_roll_out_by_the_reference():
    """What one rank's trial chose must not part its forecasts from the others'."""
    case = RolloutCase.make(SIZES)
    Off.share = 0.5
    ranked = RankedKernels(ChosenKernels({"rollout": Off()}), ranks=None)
    for mine, right in zip(case.on(ranked), case.on(REFERENCE), strict=True):
        np.testing.assert_array_equal(mine, right)


def test_a_model_without_kernels_is_left_as_it_is():
    from hybridcore.dynamics.linear import Linear

    engine, _ = build(bowl(0), configure(), dynamics=Linear())
    assert not isinstance(engine.foresight.keeper.model, UsesKernels)
