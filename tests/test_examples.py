"""The configurations under examples/ train on real data; an accuracy comes from the model itself (F75)."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

from hybridcore.compare import read_comparison
from hybridcore.configfile import load_config
from hybridcore.runner import run_task
from hybridcore.tasks.building import build_task

torch = pytest.importorskip("torch")
pytest.importorskip("hybridcore_torch")

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"gpt": {"name": "stdlib-gpt", "options": {"depth": 1, "width": 32, "max_bytes": 500_000}}}
"""What is trained instead where the example itself would take minutes; its text is the same library's."""


def shortened(name, registry):
    config = load_config(EXAMPLES / f"{name}.toml")
    run = attrs.evolve(config.run, steps=6, evaluate_every=3)
    if name in SMALL:
        assert config.task.name in registry.tasks
        config = attrs.evolve(config, task=attrs.evolve(config.task, **SMALL[name]))
    return attrs.evolve(config, run=run)


@pytest.mark.parametrize("name", ["demo", "mnist-cnn", "gpt"])
def test_an_example_trains_and_is_read_back(name, tmp_path):
    from hybridcore.plugins import load_registry

    registry = load_registry()
    for arm in ("baseline", "hybrid"):
        run_task(shortened(name, registry), arm=arm, out_dir=tmp_path / arm, registry=registry)
    result = read_comparison(tmp_path)
    assert result.rows[0].arm == "baseline"
    losses = [e.loss for e in result.records[0].evaluations]
    assert losses[-1] < losses[0], "six real steps on real data lower the validation loss"


def test_accuracy_is_counted_from_the_models_own_answers(tmp_path):
    from hybridcore.plugins import load_registry
    from hybridcore.tasks.data import mnist

    registry = load_registry()
    run = build_task(shortened("mnist-cnn", registry), registry)
    for _ in range(6):
        run.adapter.train_step(next(run.batches))
    found, model = run.evaluate()["accuracy"], run.adapter.model.eval()
    _, labels = mnist()
    assert len(np.unique(labels)) == 10
    task = registry.get("task", "mnist-cnn")
    validation = task(task.Config()).problem(0).validation
    with torch.no_grad():
        right = [(model(torch.as_tensor(x)).argmax(1).numpy() == y) for x, y in validation]
    assert found == pytest.approx(np.concatenate(right).mean())
    assert 0.0 < found < 1.0
