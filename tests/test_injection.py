from __future__ import annotations

import math

import numpy as np
import pytest
from engine_lab import bits, bowl, build, clouds, configure, drive

from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.errors import ConfigError, DivergenceError, TaskError
from hybridcore.events import Event, EventBus
from hybridcore.injection import KINDS, Fault, FaultyAdapter, corrupted, mislead, parse_faults
from hybridcore.records import read_run
from hybridcore.runner import run_task


def faulty(adapter, plan):
    heard = []
    events = EventBus()
    events.listen(lambda event, payload: heard.append((event, payload["kind"], payload["step"])))
    return FaultyAdapter(adapter, parse_faults(plan), events), heard


def test_a_plan_is_read():
    assert parse_faults("nan@500, spike@900x3:1e4,") == (
        Fault("nan", 500, 1, 1.0),
        Fault("spike", 900, 3, 1e4),
    )
    for kind, (length, strength) in KINDS.items():
        assert parse_faults(f"{kind}@7") == (Fault(kind, 7, length, strength),)
    assert math.isnan(parse_faults("predictor@3:nan")[0].strength)
    assert parse_faults("") == ()


@pytest.mark.parametrize(
    "plan", ["nan", "nan@", "nan@0", "nan@5x0", "nan@x3", "@4", "nan@5:big", "nan@5;spike@6"]
)
def test_a_bad_plan_is_an_error(plan):
    with pytest.raises(ConfigError):
        parse_faults(plan)


def test_all_mistakes_of_a_plan_are_reported_with_suggestions():
    with pytest.raises(ConfigError, match="did you mean 'spike'") as caught:
        parse_faults("spik@5,nan@-1,nan@4")
    assert len(caught.value.problems) == 2


def test_nan_makes_the_adapter_itself_skip_that_step_only():
    inner, batches, _ = clouds()
    adapter, heard = faulty(inner, "nan@3x2")
    results, states = [], []
    for _ in range(6):
        results.append(adapter.train_step(next(batches)))
        states.append(bits(inner.snapshot()))
    assert [r.skipped for r in results] == [False, False, True, True, False, False]
    assert states[1] == states[2] == states[3] != states[4]
    assert heard == [(Event.FAULT, "nan", 3)]


def test_a_spike_makes_the_update_that_many_times_as_long():
    plain, (adapter, _) = bowl(), faulty(bowl(), "spike@2:50")
    for _ in range(2):
        before = plain.params["w"].copy()
        usual = plain.train_step(None)
        result = adapter.train_step(None)
    update = plain.params["w"] - before
    np.testing.assert_allclose(adapter.params["w"], before + 50 * update, rtol=1e-5, atol=1e-5)
    assert result.grad_norm == pytest.approx(50 * usual.grad_norm)


def test_poison_corrupts_inputs_and_labels_of_any_batch():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 3)).astype(np.float32), np.arange(50)
    batch = {"x": [x], "y": y, "n": 3}
    bad = corrupted(batch, 4.0, np.random.default_rng(1))
    np.testing.assert_array_equal(bad["x"][0], -4.0 * x)
    assert sorted(bad["y"]) == list(y) and not np.array_equal(bad["y"], y)
    assert bad["n"] == 3 and bad["x"][0].dtype == np.float32


@pytest.mark.parametrize("kind", ["lr", "plateau"])
def test_the_learning_rate_is_turned_and_turned_back(kind):
    adapter, _ = faulty(bowl(), f"{kind}@3x2:10")
    rates = []
    for _ in range(6):
        adapter.train_step(None)
        rates.append(adapter.learning_rate)
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.01])


def test_where_an_earlier_state_comes_back_the_turned_rate_is_gone():
    adapter, _ = faulty(bowl(), "lr@3x20:10")
    adapter.train_step(None)
    point = adapter.snapshot()
    for _ in range(4):
        adapter.train_step(None)
    assert adapter.learning_rate == pytest.approx(0.1)
    adapter.restore(point)
    for _ in range(30):
        adapter.train_step(None)
        assert adapter.learning_rate == pytest.approx(0.01)


def test_an_adapter_without_a_rate_to_turn_is_an_error():
    inner = bowl()
    inner.capabilities = frozenset()
    with pytest.raises(TaskError, match="cannot change its learning rate"):
        faulty(inner, "plateau@3")
    faulty(inner, "nan@3")


def misled(plan, steps=80):
    inner, batches, probes = clouds()
    events, faults = EventBus(), parse_faults(plan)
    adapter = FaultyAdapter(inner, faults, events)
    engine, recorder = build(
        adapter, configure(), Fixed(FixedConfig(horizon=2.0, full_steps=4, correct_steps=4)), probes=probes
    )
    events.listen(recorder)
    mislead(engine.predictors.values(), faults, adapter, events)
    drive(engine, steps, batches)
    return engine, recorder


def test_a_misled_prediction_is_refused_and_the_next_one_is_right_again():
    _, recorder = misled("predictor@20x2:5")
    assert len(recorder.named("fault")) == 2
    struck = {e["step"] for e in recorder.named("fault")}
    refused = {e["step"] for e in recorder.named("jump-refused")}
    failed = [e for e in recorder.named("verdict") if not e["kept"]]
    assert struck <= refused or failed
    assert any(j["step"] > max(struck) for j in recorder.named("jump"))


def test_a_prediction_that_is_not_finite_resets_the_predictor():
    engine, recorder = misled("predictor@20:nan")
    assert [e["action"] for e in recorder.named("recovery")] == ["reset-predictor"]
    assert np.isfinite(engine.adapter.params["weight"]).all()


@pytest.mark.parametrize(
    "plan", ["nan@200", "spike@200:3000", "weights@200", "poison@200x3:1000", "lr@200x3:1e5"]
)
def test_a_run_survives_and_its_record_tells_the_story(plan, configuration, tmp_path):
    config = configuration(run={"steps": 400}, task={"learning_rate": 0.3})
    clean = run_task(config, out_dir=tmp_path / "clean")
    result = run_task(config, out_dir=tmp_path / "run", faults=parse_faults(plan))
    assert result.final_loss <= 1.05 * clean.final_loss
    events = read_run(tmp_path / "run").events
    struck = next(i for i, e in enumerate(events) if e["event"] == "fault")
    story = [e["event"] for e in events[struck:]]
    assert "rollback" in story or "recovery" in story
    assert all(e["event"] != "recovery" for e in events[:struck])
    assert result.summary["divergences"] + result.summary["rollbacks"] > 0
    assert clean.summary["divergences"] == 0


def test_what_never_ends_is_an_error_and_the_record_says_why(configuration, tmp_path):
    with pytest.raises(DivergenceError, match="non-finite critical"):
        run_task(configuration(), out_dir=tmp_path, faults=parse_faults("nan@20x1000"))
    last = read_run(tmp_path).events[-1]
    assert last["event"] == "recovery" and last["action"] == "abort"


def test_the_command_injects(toy, tmp_path, monkeypatch, capsys):
    from hybridcore.cli import execute

    monkeypatch.chdir(tmp_path)
    arguments = ["run", "balanced", "--framework", "numpy", "--set", "task.name=quadratic", "--out", "out"]
    code = execute([*arguments, "--set", "run.steps=60", "--inject", "nan@30,nan@40"])
    assert not code
    assert read_run("out").summary["skipped"] == 2
    assert execute([*arguments, "--inject", "nann@30"]) == 2
    assert "did you mean 'nan'" in capsys.readouterr().err


def test_the_log_tells_the_story_once_and_in_order(toy, tmp_path, monkeypatch, capsys):
    from hybridcore.cli import execute

    monkeypatch.chdir(tmp_path)
    arguments = ["run", "balanced", "--framework", "numpy", "--set", "task.name=logistic", "--out", "out"]
    steady = ["--set", "predictor.name=none", "--set", "run.steps=160"]
    assert execute([*arguments, *steady, "--inject", "nan@100,spike@140:3000", "--trace"]) == 0
    log = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("INFO", "WARNING"))]
    told = ("step 100: injected", "step 100: signal", "step 100: skip-batch", "step 140: injected")
    told = [*told, "step 140: signal", "step 140: skip-batch"]
    places = [[i for i, line in enumerate(log) if words in line] for words in told]
    assert all(len(found) == 1 for found in places), "each thing is said once"
    assert places == sorted(places)
    assert "WARNING step 100: injected fault nan x1:1" in log
    assert "back to step" in log[places[5][0]]
