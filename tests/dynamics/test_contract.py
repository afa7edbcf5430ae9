from __future__ import annotations

from hybridcore.dynamics.linear import Linear
from hybridcore.dynamics.mlp import Mlp, MlpOptions
from hybridcore.dynamics.rssm import Rssm, RssmOptions
from hybridcore.testing import DynamicsContract


class TestLinear(DynamicsContract):
    def make(self):
        return Linear()


class TestMlp(DynamicsContract):
    def make(self):
        return Mlp(MlpOptions(hidden=(16,)))


class TestRssm(DynamicsContract):
    updates = 1

    def make(self):
        return Rssm(
            RssmOptions(deterministic=8, stochastic=2, classes=4, hidden=8, batch=8, longest=8, samples=4)
        )
