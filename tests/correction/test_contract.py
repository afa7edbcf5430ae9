from __future__ import annotations

from hybridcore.correction.gains import Gains
from hybridcore.correction.loss_level import LossLevel
from hybridcore.correction.none import NoCorrection
from hybridcore.testing import CorrectorContract


class TestNone(CorrectorContract):
    def make(self):
        return NoCorrection()


class TestLossLevel(CorrectorContract):
    def make(self):
        return LossLevel()


class TestGains(CorrectorContract):
    def make(self):
        return Gains()


class TestGainsWithResidual(CorrectorContract):
    def make(self):
        return Gains(Gains.Config(rank=1, relative=True))
