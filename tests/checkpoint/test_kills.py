"""F54: SIGKILL at random moments, also inside a write, loses no run."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_runs_end_like_the_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    kills = importlib.import_module("benchmarks.kills")
    outcome = kills.kill_runs(tmp_path, 16, seed=0, steps=20)
    assert outcome.kills == 16 and outcome.inside > 0 and outcome.finished > 0
    assert outcome.lost == outcome.different == 0
