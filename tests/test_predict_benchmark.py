"""The table of `benchmarks/predict.py`, from made-up runs and from tiny real ones."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import attrs
import pytest

from hybridcore.compare import summarise
from hybridcore.errors import ConfigError
from hybridcore.records import Evaluation, RunRecord

ROOT = Path(__file__).parents[1]


@pytest.fixture
def predict(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.predict")


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
    lower = {setting("gpt", "adamw", r): runs(baseline=[3.0, loss]) for r, loss in ((0.1, 1.0), (0.3, 2.0))}
    assert predict.edges(lower) == ["gpt-adamw-0.1"], "a smaller rate may be better as well"
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
    """So that the best baseline can be seen not to lie at the edge; rows above the best ones lie beyond."""
    for setting in predict.SETTINGS:
        alike = [
            s
            for s in predict.SETTINGS
            if attrs.evolve(s, rate=1.0).name == attrs.evolve(setting, rate=1.0).name
        ]
        if setting.shown and not setting.above:
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
    plan = attrs.evolve(plan, steps={"lora": 4, "poisson": 5}, controller="credit", overrides=())
    full_batch = plan.configuration(predict.Setting("poisson", "adam", 0.01), seed=3)
    assert (full_batch.task.name, full_batch.run.seed) == ("poisson-pinn", 3)
    assert (full_batch.controller.name, full_batch.predictor.name) == ("fixed", "gauss-newton")
    lora = plan.configuration(predict.Setting("lora", "adamw", 1e-4))
    assert (lora.task.name, lora.controller.name, lora.run.steps) == ("lora-gpt", "credit", 4)


def test_tiny_runs_give_table_figure_and_file(
    predict, tmp_path, monkeypatch, capsys, configuration, registry
):
    plan = predict.Plan({"mlp": 60}, 3, 9, (0,), ("hybrid", "random"), "fixed", "cpu", None)
    made = {}

    def configure(self, setting, seed=0):
        run = {"seed": seed}
        task = {"learning_rate": setting.rate}
        return configuration(run=run, task=task, average={"enabled": True, "every": 2})

    monkeypatch.setattr(predict.Plan, "configuration", configure)
    settings = [predict.Setting("mlp", "sgd", 0.02), predict.Setting("mlp", "sgd", 0.2, shown=False)]
    monkeypatch.setattr(predict, "SETTINGS", tuple(settings))
    for setting in settings:
        plan.run(setting, 0, tmp_path / setting.name)
        made[setting] = (tmp_path / setting.name / "random").is_dir()
    assert list(made.values()) == [True, False]
    assert predict.main(["--read", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "predict.json").read_text())
    assert data["rows"][0]["rate_over_best"] == pytest.approx(0.1)
    assert {"hybrid, averaged", "baseline, averaged", "random"} <= data["rows"][0]["cost"].keys()
    assert (tmp_path / "predict.png").stat().st_size > 10_000
    assert "worst row: mlp-sgd-0.02" in capsys.readouterr().out


@pytest.fixture
def tiny(predict, monkeypatch, configuration, registry):
    """A plan on the small problem, and a counter of the arms that it trains."""
    from benchmarks import settings

    trained = []
    run_arm = settings._run_arm

    def count(config, arm, place, registry):
        if config.run.steps > 3:
            trained.append((arm, config.run.seed))
        run_arm(config, arm, place, registry)

    def configure(self, setting, seed=0):
        return configuration(run={"seed": seed}, task={"learning_rate": setting.rate})

    monkeypatch.setattr(settings, "_run_arm", count)
    monkeypatch.setattr(predict.Plan, "configuration", configure)
    arms = ("hybrid", "fast-forward", "ema")
    return predict.Plan({"mlp": 60}, 3, 9, (0, 1), arms, "fixed", "cpu", None), trained


def test_a_second_call_goes_on_where_the_first_stopped(predict, tiny, tmp_path):
    plan, trained = tiny
    setting = predict.Setting("mlp", "sgd", 0.02)
    plan.run(setting, 0, tmp_path)
    plan.run(setting, 1, tmp_path)
    forth = ["baseline", "hybrid", "fast-forward", "ema"]
    assert trained == [(arm, 0) for arm in forth] + [(arm, 1) for arm in reversed(forth)]
    trained.clear()
    (tmp_path / "ema" / "seed-0" / "summary.json").unlink()
    summary = tmp_path / "hybrid" / "seed-0" / "summary.json"
    summary.write_text(summary.read_text().replace('"interrupted": false', '"interrupted": true'))
    plan.run(setting, 0, tmp_path)
    plan.run(setting, 1, tmp_path)
    assert trained == [("hybrid", 0), ("ema", 0)]
    result = predict.finished_comparison(tmp_path)
    assert {row.arm: row.runs for row in result.rows} == dict.fromkeys(forth, 2)
    assert predict.finished_comparison(tmp_path / "elsewhere") is None


def test_only_full_batches_have_lbfgs(predict):
    plan = predict.Plan({}, 3, 9, (0,), ("hybrid", "lbfgs"), "fixed", "cpu", None)
    assert plan.arms_of(predict.Setting("mlp", "sgd", 0.1)) == ("baseline", "hybrid")
    assert plan.arms_of(predict.Setting("poisson", "adam", 0.1)) == ("baseline", "hybrid", "lbfgs")
    assert plan.arms_of(predict.Setting("poisson", "adam", 0.1, shown=False)) == ("baseline",)


def test_the_curve_has_seven_rates_from_a_300th_to_3(predict):
    for model, optimizer in (("mlp", "sgd"), ("mlp", "adam"), ("lora", "adamw")):
        rates = [s.rate for s in predict.CURVE if (s.model, s.optimizer) == (model, optimizer)]
        assert len(rates) == 7
        assert rates[-1] / rates[0] == pytest.approx(900, rel=1e-4)
    assert len({s.name for s in predict.CURVE}) == 21


def test_a_rival_without_a_rate_is_run_once_and_drawn_at_every_rate(predict, tiny, tmp_path, monkeypatch):
    from benchmarks.rivals import RIVALS

    plan, _ = tiny
    monkeypatch.setitem(RIVALS, "ema", attrs.evolve(RIVALS["ema"], own_rate=True))
    settings = [predict.Setting("mlp", "sgd", rate) for rate in (0.002, 0.02)]
    plan = attrs.evolve(plan, seeds=(0,))
    jobs = predict.jobs_of(plan, settings, once=True)
    assert sorted((s.rate, "ema" in own.arms) for s, _, own in jobs) == [(0.002, True), (0.02, False)]
    assert all("ema" in own.arms for _, _, own in predict.jobs_of(plan, settings, once=False))
    for setting, seed, own in jobs:
        own.run(setting, seed, tmp_path / setting.name)
    points = {(p.setting.rate, p.arm): p for p in predict.curve(settings, plan.arms, tmp_path)}
    assert points[0.002, "ema"].final == points[0.02, "ema"].final
    assert points[0.002, "ema"].cost >= points[0.02, "ema"].cost, "the slower baseline is easier to reach"
    assert points[0.002, "baseline"].rate_over_best == pytest.approx(0.1)
    assert points[0.02, "baseline"].cost == 1.0
    text = predict.curve_table(list(points.values()), plan.arms)
    assert len({line.count("|") for line in text.splitlines()}) == 1
    predict.draw_curve(list(points.values()), plan.arms, tmp_path / "curve.png", "fixed")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_arms_come_from_the_options(predict):
    def chosen(*words):
        return predict.arms_of(predict.read_options(list(words)))

    assert chosen() == predict.ARMS
    assert chosen("--full") == predict.FULL_ARMS
    assert chosen("--arms", "hybrid", "--rivals", "ema,lbfgs") == ("hybrid", "ema", "lbfgs")
    assert set(chosen("--rivals", "all")) == {*predict.ARMS, *predict.RIVALS}
    assert chosen("--curve") == ("hybrid", "fast-forward", "schedule-free", "prodigy")
    with pytest.raises(ConfigError, match="unknown arm"):
        chosen("--rivals", "emma")


def test_data_that_is_named_must_be_there(predict, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="fashion_mnist"):
        predict.find_data(str(tmp_path))
    (tmp_path / "fashion_mnist.npz").touch()
    monkeypatch.setenv("HYBRIDCORE_DATA", str(tmp_path))
    assert predict.find_data(None) == tmp_path / "fashion_mnist.npz"
    monkeypatch.delenv("HYBRIDCORE_DATA")
    monkeypatch.chdir(tmp_path)
    assert predict.find_data(None) is None


def test_the_framework_is_in_every_configuration(predict, monkeypatch, tmp_path):
    plans = []
    monkeypatch.setattr(predict, "run_all", lambda plan, *rest, **options: plans.append(plan) or True)
    for words in ([], ["--framework", "jax"], ["--framework", "jax", "--set", "run.framework=tensorflow"]):
        assert predict.main(["--only", "lora", "--out", str(tmp_path / "none"), *words]) == 0
    setting = predict.Setting("lora", "adamw", 1e-4)
    frameworks = [plan.configuration(setting).run.framework for plan in plans]
    assert frameworks == ["torch", "jax", "tensorflow"]
