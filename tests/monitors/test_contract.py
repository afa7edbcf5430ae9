"""Every built-in monitor keeps the protocol's sentences (F32)."""

from __future__ import annotations

import math

import numpy as np

from hybridcore.monitors.gradient_norm import GradientNorm
from hybridcore.monitors.loss_deviation import LossDeviation
from hybridcore.monitors.non_finite import NonFinite
from hybridcore.monitors.oscillation import Oscillation
from hybridcore.monitors.plateau import Plateau
from hybridcore.monitors.prediction_error import PredictionError
from hybridcore.protocols import SignalLevel
from hybridcore.testing import MonitorContract
from hybridcore.testing.monitor_contract import records


def noisy(steps, level=1.0, spread=0.1, seed=0):
    return level + spread * np.random.default_rng(seed).standard_normal(steps)


class TestNonFinite(MonitorContract):
    level = SignalLevel.CRITICAL

    def make(self):
        return NonFinite()

    def calm(self):
        return records([*noisy(50), 1e30, -1e30])

    def alarming(self):
        return records([*noisy(20), math.inf])

    def test_checks_at_intervals_find_it_too(self):
        assert NonFinite.every_step


class TestLossDeviation(MonitorContract):
    level = SignalLevel.CRITICAL

    def make(self):
        return LossDeviation()

    def calm(self):
        return records(noisy(300))

    def alarming(self):
        return records([*noisy(100), *noisy(30, 3.0)])


class TestGradientNorm(MonitorContract):
    level = SignalLevel.CRITICAL

    def make(self):
        return GradientNorm()

    def calm(self):
        return records(noisy(300), np.exp(noisy(300, 0.0, 0.5)))

    def alarming(self):
        return records(noisy(103), [*np.exp(noisy(100, 0.0, 0.3)), 30.0, 40.0, 500.0])


class TestPredictionError(MonitorContract):
    def make(self):
        return PredictionError()

    def calm(self):
        return [*records(noisy(40)), *records(noisy(30, seed=1), expected=1.0)]

    def alarming(self):
        return [*records(noisy(40)), *records(noisy(30, 1.9), expected=1.0)]


class TestOscillation(MonitorContract):
    def make(self):
        return Oscillation()

    def calm(self):
        return records(noisy(500, spread=0.3))

    def alarming(self):
        return records([*noisy(50), *(2.0 + (-1.0) ** np.arange(200))])


class TestPlateau(MonitorContract):
    level = SignalLevel.CAUTION

    def make(self):
        return Plateau()

    def calm(self):
        return records(np.exp(-0.005 * np.arange(600)) + 0.001 * noisy(600))

    def alarming(self):
        return records([*np.linspace(5.0, 1.0, 100), *np.ones(210)])
