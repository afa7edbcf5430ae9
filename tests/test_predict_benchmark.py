"""The table of `benchmarks/predict.py`, from made-up runs and from tiny real ones."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import attrs
import pytest

from hybridcore.compare import summarise
from hybridcore.records import Evaluation, RunRecord

FILE = Path(__file__).parents[1] / "benchmarks" / "predict.py"


@pytest.fixture
def predict(monkeypatch):
    spec = importlib.util.spec_from_file_location("predict", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "predict", module)
    spec.loader.exec_module(module)
    return module


def runs(**arms):
    """A comparison in which each arm has this validation curve at every tenth step."""
    ended = {"backward_passes": 20, "predicted_steps": 0.0, "speedup_bound": 1.0, "interrupted": False}
    records = []
    for arm, losses in arms.items():
        curve = tuple(Evaluation(10 * i, 10.0 * i, float(i), 10 * i, loss) for i, loss in enumerate(losses))
        start = {"arm": arm, "seed": 0}
        records.append(RunRecord(Path("x"), start, (), curve, (), (), (), (), (), ended))
    return summarise(records, "x")


def test_rates_and_losses_are_set_against_the_best_baseline(predict):
    setting = predict.Setting
    results = {
        setting("mlp", "sgd", 0.01): runs(baseline=[3.0, 2.5, 2.0], hybrid=[3.0, 2.0, 1.5], random=[3, 3, 3]),
        setting("mlp", "sgd", 0.1): runs(baseline=[3.0, 2.0, 1.0], hybrid=[3.0, 2.0, 1.1], random=[3, 2, 1]),
        setting("mlp", "sgd", 1.0, shown=False): runs(baseline=[3.0, math.inf, math.inf]),
        setting("mlp", "sgd", 0.2, "cosine"): runs(baseline=[3.0, 1.0, 0.8], hybrid=[3.0, 1.0, 0.8]),
        setting("mlp", "adam", 0.001): runs(baseline=[3.0, 1.0, 0.5], hybrid=[3.0, 0.5, 0.4]),
    }
    table = {row.setting.name: row for row in predict.rows(results)}
    assert list(table) == ["mlp-sgd-0.01", "mlp-sgd-0.1", "mlp-sgd-0.2-cosine", "mlp-adam-0.001"]
    assert predict.edges(results) == ["mlp-sgd-0.2-cosine", "mlp-adam-0.001"]
    slow = table["mlp-sgd-0.01"]
    assert slow.rate_over_best == pytest.approx(0.1)
    assert slow.tuned_loss == 0.8, "the best of this optimizer, whatever its schedule"
    assert (slow.cost["hybrid"], slow.wall["hybrid"]) == (2.0, 2.0)
    assert slow.best_control == ("random", 0.0)
    tuned = table["mlp-sgd-0.1"]
    assert (tuned.rate_over_best, tuned.cost["hybrid"], tuned.best_control) == (1.0, 0.0, ("random", 1.0))
    assert table["mlp-adam-0.001"].tuned_loss == 0.5
    text = predict.markdown(list(table.values()))
    line = next(x for x in text.splitlines() if x.startswith("| mlp-sgd-0.1 "))
    assert "| missed |" in line
    assert "1.00x random" in line
    assert len({x.count("|") for x in text.splitlines()}) == 1
    assert predict.worst(table.values()).startswith("worst row: mlp-sgd-0.1, hybrid missed")


def test_every_optimizer_has_rates_beyond_its_rows(predict):
    """So that the best baseline can be seen not to lie at the edge."""
    for setting in predict.SETTINGS:
        alike = [
            s
            for s in predict.SETTINGS
            if attrs.evolve(s, rate=1.0, shown=True).name == attrs.evolve(setting, rate=1.0).name
        ]
        if setting.shown:
            assert max(s.rate for s in alike) > setting.rate
    assert len({s.name for s in predict.SETTINGS}) == len(predict.SETTINGS)


def test_a_setting_is_the_recipe_it_names(predict, registry):
    options = predict.read_options(["--set", "history.window=7"])
    plan = predict.Plan(
        {"mlp": 40, "gpt": 4}, 4, 9, (0,), ("hybrid",), "fixed", "cpu", None, tuple(options.set)
    )
    config = plan.configuration(predict.Setting("mlp", "momentum", 0.03, "cosine"))
    assert (config.run.steps, config.run.evaluate_every, config.history.window) == (40, 10, 7)
    assert config.task.options == {
        "optimizer": "momentum",
        "learning_rate": 0.03,
        "schedule": "cosine",
        "schedule_steps": 40,
    }
    assert (config.controller.name, config.average.enabled) == ("fixed", True)


def test_tiny_runs_give_table_figure_and_file(
    predict, tmp_path, monkeypatch, capsys, configuration, registry
):
    plan = predict.Plan({"mlp": 60}, 3, 9, (0,), ("hybrid", "random"), "fixed", "cpu", None)
    made = {}

    def configure(self, setting):
        return configuration(task={"learning_rate": setting.rate}, average={"enabled": True, "every": 2})

    monkeypatch.setattr(predict.Plan, "configuration", configure)
    settings = [predict.Setting("mlp", "sgd", 0.02), predict.Setting("mlp", "sgd", 0.2, shown=False)]
    monkeypatch.setattr(predict, "SETTINGS", tuple(settings))
    for setting in settings:
        plan.run(setting, tmp_path / setting.name)
        made[setting] = (tmp_path / setting.name / "random").is_dir()
    assert list(made.values()) == [True, False]
    assert predict.main(["--read", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "predict.json").read_text())
    assert data["rows"][0]["rate_over_best"] == pytest.approx(0.1)
    assert {"hybrid, averaged", "baseline, averaged", "random"} <= data["rows"][0]["cost"].keys()
    assert (tmp_path / "predict.png").stat().st_size > 10_000
    assert "worst row: mlp-sgd-0.02" in capsys.readouterr().out


def test_data_that_is_named_must_be_there(predict, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="fashion_mnist"):
        predict.find_data(str(tmp_path))
    (tmp_path / "fashion_mnist.npz").touch()
    monkeypatch.setenv("HYBRIDCORE_DATA", str(tmp_path))
    assert predict.find_data(None) == tmp_path / "fashion_mnist.npz"
    monkeypatch.delenv("HYBRIDCORE_DATA")
    monkeypatch.chdir(tmp_path)
    assert predict.find_data(None) is None
