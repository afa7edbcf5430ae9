"""The benchmark's own task, on a made-up data file of the same form."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from hybridcore.errors import TaskError

FILE = Path(__file__).parents[1] / "benchmarks" / "fashion_mlp.py"


@pytest.fixture
def module(monkeypatch):
    spec = importlib.util.spec_from_file_location("fashion_mlp", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VALIDATION", 20)
    monkeypatch.setattr(module, "PROBES", 8)
    return module


def test_the_last_images_are_held_out(module, tmp_path):
    images = np.arange(60, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    np.savez(tmp_path / "f.npz", x=images, y=np.arange(60) % 10)
    problem = module.fashion_problem(str(tmp_path / "f.npz"), seed=0, batch_size=4, learning_rate=0.5)
    ids = {
        part: [round(255 * float(row[0])) for batch in batches for row in batch[0]]
        for part, batches in {
            "training": [next(problem.batches(position)) for position in range(8)],
            "probes": problem.probes,
            "validation": problem.validation,
        }.items()
    }
    assert ids["validation"] == list(range(40, 60))
    assert len(ids["probes"]) == 8
    assert sorted(ids["training"] + ids["probes"]) == list(range(40))
    assert problem.optimizer.learning_rate == 0.5
    fewer = module.fashion_problem(str(tmp_path / "f.npz"), seed=0, batch_size=4, validation=7)
    assert [round(255 * float(x[0])) for images, _ in fewer.validation for x in images] == list(range(40, 47))


def test_a_missing_file_names_the_key(module, tmp_path):
    with pytest.raises(TaskError) as caught:
        module.fashion_problem(str(tmp_path / "none.npz"), seed=0)
    assert caught.value.where == "task.path"
