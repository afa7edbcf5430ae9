"""Every operation of the protocol is one that a run asks its kernel set for; results are those without."""

from __future__ import annotations

from collections import Counter

import pytest
from engine_lab import build, clouds, configure, drive

from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.correction.gains import Gains, GainsConfig
from hybridcore.dynamics.rssm import Rssm, RssmOptions
from hybridcore.kernels import ChosenKernels, ReferenceKernels
from hybridcore.kernels.chosen import OPERATIONS
from hybridcore.predictors.spectral import Spectral
from hybridcore.protocols import Action, OptimizerSpec, Phase


def small_model():
    return Rssm(RssmOptions(deterministic=8, hidden=8, stochastic=2, classes=4, samples=2, members=2))


class Counted(ReferenceKernels):
    """The reference under another name, which counts who is asked."""

    name = "counted"

    def __init__(self):
        self.calls = Counter()

    def __getattribute__(self, name):
        if name in OPERATIONS:
            self.calls[name] += 1
        return super().__getattribute__(name)


class Watching(Fixed):
    """Has all that a controller may ask the history for kept, and asks the dynamics model now and then."""

    needs = frozenset({"reach", "window-means", "straightness", "last-update"})

    def __init__(self, config):
        super().__init__(config)
        self.forecasts = []

    def choose(self, state):
        if state.step > 40 and len(self.forecasts) < 3:
            forecast = state.forecast(Action(Phase.FULL, 1, ""), 6)
            self.forecasts.append(forecast.mean.tobytes() + forecast.epistemic.tobytes())
        return super().choose(state)


def run(kernels, dtype):
    adapter, batches, probes = clouds(0, optimizer=OptimizerSpec("momentum", 0.005))
    history = {"window": 5, "dtype": dtype}
    config = configure(history=history, verdict={"confidence_z": 1e6, "guard_z": 1e6})
    controller = Watching(FixedConfig(horizon=20.0, full_steps=12, correct_steps=6))
    corrector = Gains(GainsConfig(rank=1))
    chosen = ChosenKernels(dict.fromkeys(OPERATIONS, kernels)) if kernels else ChosenKernels({})
    engine, recorder = build(
        adapter,
        config,
        controller,
        Spectral(),
        probes,
        corrector=corrector,
        kernels=chosen,
        dynamics=small_model(),
    )
    drive(engine, 250, batches)
    assert chosen.failure is None and engine.counts.jumps > 3
    assert any(r.weights is not None for r in engine.corrections.store)
    assert len(controller.forecasts) == 3
    return recorder.trace(), [b.tobytes() for b in adapter.read_params()], controller.forecasts


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_f70_a_run_asks_for_every_operation(dtype):
    kernels = Counted()
    assert run(kernels, dtype) == run(None, dtype)
    assert set(kernels.calls) == set(OPERATIONS)
