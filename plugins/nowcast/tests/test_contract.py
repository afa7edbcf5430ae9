"""F85: the contract of every predictor, with the shipped network and with one in NiNo's format."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from hybridcore.testing import PredictorContract
from hybridcore_nowcast.predictor import Nowcast, NowcastConfig

sys.path.insert(0, str(Path(__file__).parent))
from nino_file import state


class TestShipped(PredictorContract):
    chooses_length = True  # the decay shortens jumps

    def make(self) -> Nowcast:
        return Nowcast(NowcastConfig(decay_steps=100))


class TestWnnPlus(PredictorContract):
    chooses_length = True

    @pytest.fixture(autouse=True)
    def checkpoint(self, tmp_path: Path) -> None:
        self.path = tmp_path / "wnn.safetensors"
        save_file(state(), self.path)

    def make(self) -> Nowcast:
        return Nowcast(NowcastConfig(checkpoint=str(self.path), decay_steps=100, chunk=7))
