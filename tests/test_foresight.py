"""A dynamics model at work in real runs of the NumPy adapter (F3, F5, F16-F18, F51)."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from engine_lab import Recorder, clouds, configure, drive

from hybridcore.config import DynamicsConfig
from hybridcore.controllers.credit import Credit, CreditConfig
from hybridcore.controllers.threshold import Threshold, ThresholdConfig
from hybridcore.dynamics.linear import Linear
from hybridcore.dynamics.mlp import Mlp
from hybridcore.engine import Engine
from hybridcore.events import EventBus
from hybridcore.predictors.drift import Drift
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.protocols import Action, OptimizerSpec, Phase

EAGER = {"name": "linear", "share": 1.0, "stride": 1}


def engine(controller=None, predictor=None, dynamics=None, rate=0.01, model=None):
    adapter, batches, probes = clouds(optimizer=OptimizerSpec("sgd", rate))
    recorder, bus = Recorder(), EventBus()
    bus.listen(recorder)
    predictor = predictor or Drift()
    config = configure(
        dynamics={**EAGER, **(dynamics or {})},
        phases={"warmup_steps": 20},
        groups={"max_relative_repeat": 0.5},
    )
    built = Engine(
        adapter,
        config,
        controller or Threshold(ThresholdConfig(confidence_threshold=0.2)),
        {predictor.name: predictor},
        probes=probes,
        events=bus,
        dynamics=model or Linear(),
    )
    built.foresight.keeper._parameters = 10**8  # else a share of so small a model's cost trains nothing
    return built, recorder, batches


def test_f3_warmup_gives_the_model_its_samples():
    built, _, batches = engine()
    drive(built, 20, batches)
    assert built.phase is not Phase.WARMUP
    assert built.foresight.keeper.model.samples >= 19 - 10, "the ten newest wait for what follows them"


def test_f16_forecasts_of_a_real_run_cover_its_losses():
    built, recorder, batches = engine(dynamics={"share": 1.0})
    drive(built, 200, batches)
    inside = []
    for _ in range(100):
        rollout = built.foresight.forecast(Action(Phase.FULL, 1, ""), 1)
        low, high = rollout.interval(0.9)
        drive(built, 1, batches)
        inside.append(low[0] <= recorder.named("real-step")[-1]["loss"] <= high[0])
    assert 0.75 <= np.mean(inside) <= 1.0


@pytest.mark.parametrize(
    ("field", "one", "other", "read"),
    [
        ("stride", 1, 4, lambda e: e.foresight.keeper.model.samples),
        ("share", 0.0, 1.0, lambda e: e.foresight.keeper.updates),
        ("max_updates", 1, 8, lambda e: e.foresight.keeper.updates),
        ("memory_budget_mib", 0.2, 50.0, lambda e: e.foresight.keeper.nbytes),
    ],
)
def test_f57_the_fields_of_the_table(field, one, other, read):
    found = []
    for value in (one, other):
        model = Mlp(Mlp.Config(hidden=(4,), members=2)) if field == "max_updates" else Linear()
        built, _, batches = engine(dynamics={field: value}, model=model)
        drive(built, 130, batches)
        found.append(read(built))
    assert found[0] != found[1]
    assert built.foresight.keeper.nbytes <= built.config.dynamics.memory_budget_mib * 2**20
    assert built.summary()["dynamics_bytes"] == built.foresight.keeper.nbytes
    assert built.summary()["dynamics_updates"] == built.foresight.keeper.updates


class Unsure(Linear):
    """Is hardly ever right, and says so."""

    stated = 0.01

    def rollout(self, features, action, horizon):
        return attrs.evolve(super().rollout(features, action, horizon), confidence=self.stated)


def test_f5_the_gate_asks_the_model_too():
    """The path is as straight in both runs; only the model's confidence differs."""
    jumps = []
    for model in (Linear(), Unsure()):
        built, recorder, batches = engine(model=model, rate=0.001)
        drive(built, 150, batches)
        jumps.append(len(recorder.named("jump")))
    assert jumps[0] > 0 == jumps[1]


@pytest.mark.parametrize("controller", [None, "credit"])
def test_f5_a_model_that_was_never_trained_has_no_say(controller):
    """As where the share pays for no training, beside a model of a few thousand weights."""
    traces = []
    for model in (Linear(), None):
        foresight = Credit(CreditConfig(foresight=True)) if controller else None
        predictor = LastUpdate() if controller else Drift()
        built, recorder, batches = engine(
            foresight, predictor, rate=0.001, dynamics={"share": 0.0}, model=model or Linear()
        )
        if model is None:
            built.participants.foresight = None
        drive(built, 200, batches)
        assert recorder.named("jump")
        traces.append(recorder.trace())
    assert traces[0] == traces[1]


def test_f5_a_model_that_lost_its_confidence_keeps_its_say():
    built, _, _ = engine(model=Unsure())
    assert built.foresight.confidence("drift", 5.0) == 0.01
    built.foresight.keeper.model.stated = 0.0
    assert built.foresight.confidence("drift", 5.0) == 0.0


class Prefers(Linear):
    """Promises the lowest loss where the horizon is nearest to `best`."""

    best = 0.0

    def rollout(self, features, action, horizon):
        rollout = super().rollout(features, action, horizon)
        gap = abs(action.horizon - self.best) if action.phase is Phase.PREDICT else 0.0
        return attrs.evolve(rollout, mean=np.full(horizon, gap), epistemic=np.zeros(horizon), confidence=0.9)


@pytest.mark.parametrize(("best", "longer"), [(0.0, False), (1e9, True)])
def test_credit_takes_the_horizon_that_the_model_promises_most_of(best, longer):
    def total(foresight):
        model = Prefers()
        model.best = best
        controller = Credit(CreditConfig(foresight=foresight, trust=1.0))
        built, _, batches = engine(controller, LastUpdate(), rate=0.001, model=model)
        drive(built, 120, batches)
        return built.counts.predicted_steps

    plain = total(False)
    assert plain > 0.0
    asked = total(True)
    assert asked != plain and (asked > plain) is longer


def test_a_jump_is_what_the_next_observation_is_due_to():
    built, _, batches = engine(Credit(), LastUpdate(), rate=0.001)
    seen = []
    observe = built.foresight.keeper.model.observe

    def spy(features, action, outcome):
        seen.append(action)
        observe(features, action, outcome)

    built.foresight.keeper.model.observe = spy
    drive(built, 120, batches)
    jumps = [a for a in seen if a.phase is Phase.PREDICT]
    assert jumps and all(a.horizon > 0.0 and a.predictor == "last-update" for a in jumps)
    assert DynamicsConfig().name == "none", "without a table nothing is foretold"


def test_f72_the_same_seed_gives_the_same_run():
    def run():
        built, recorder, batches = engine()
        drive(built, 200, batches)
        rollout = built.foresight.forecast(Action(Phase.FULL, 1, ""), 5)
        return recorder.trace(), rollout.mean.tolist(), rollout.epistemic.tolist(), rollout.confidence

    assert run() == run()
