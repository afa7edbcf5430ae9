from __future__ import annotations

import itertools
import json
import math

import attrs
import pytest

from hybridcore.arms import ARMS, base_rate, check_arm, plan_arm
from hybridcore.components import check_config
from hybridcore.configfile import load_config, load_preset, preset_data, preset_names
from hybridcore.errors import ConfigError, TaskError
from hybridcore.events import Event
from hybridcore.peaks import PEAKS
from hybridcore.records import read_run
from hybridcore.runner import run_task
from hybridcore.tuning import tune

VOLATILE = {"seconds", "elapsed", "time", "credit_seconds", "overhead_share", "speedup", *PEAKS}


def trace(record):
    return [{k: v for k, v in event.items() if k not in VOLATILE} for event in record.events]


def test_hybrid_run_is_recorded_from_start_to_end(tmp_path, registry, configuration):
    config = configuration()
    heard = []
    result = run_task(
        config, out_dir=tmp_path / "run", registry=registry, progress=lambda event, _: heard.append(event)
    )
    record = read_run(tmp_path / "run")
    assert heard[0] is Event.RUN_START
    assert heard[-1] is Event.RUN_END
    assert [e["event"] for e in record.events] == [event.value for event in heard]
    assert record.start["parameters"] == 33
    assert record.start["task"] == "toy_problem:build"
    assert {"python", "numpy", "hybridcore"} <= record.start["versions"].keys()
    assert [e.step for e in record.evaluations] == [0, 20, 40, 60]
    assert len(record.jumps) == result.summary["jumps"] > 0
    assert result.final_loss == record.final_loss < 0.9 * record.evaluations[0].loss
    assert record.evaluations[-1].metrics == {"examples": 100.0}
    assert {**record.summary, "event": None} == {**json.loads(json.dumps(result.summary)), "event": None}
    assert load_config(tmp_path / "run" / "config.toml") == config


def test_summary_of_a_run_has_every_key_in_every_arm(tmp_path, registry, configuration):
    keys = {
        "real_steps", "backward_passes", "predicted_steps", "jumps", "refused", "verdicts_kept",
        "verdicts_failed", "rollbacks", "skipped", "credit_steps", "credit_seconds", "overhead_share",
        "history_bytes", "budget_bytes", "elapsed", "cost", "final_loss", "interrupted", "speedup",
        "loss_gap",
    }  # fmt: skip
    for arm in ("baseline", "hybrid"):
        summary = run_task(configuration(), arm=arm, out_dir=tmp_path / arm, registry=registry).summary
        assert keys <= summary.keys()
        assert summary["speedup"] is None
        assert summary["loss_gap"] is None
        written = json.loads((tmp_path / arm / "summary.json").read_text())
        assert keys <= written.keys()
        assert (written["arm"], written["seed"]) == (arm, 0)


def test_baseline_takes_exactly_the_steps_of_a_plain_loop(tmp_path, registry, configuration, toy):
    result = run_task(configuration(), arm="baseline", out_dir=tmp_path, registry=registry)
    plain = toy.build(framework="numpy", seed=0, device="cpu")
    for batch in itertools.islice(plain.batches, 60):
        plain.adapter.train_step(batch)
    assert result.final_loss == plain.evaluate()["loss"]
    assert result.summary["backward_passes"] == result.summary["real_steps"] == 60
    record = read_run(tmp_path)
    assert len(record.steps) == 60
    assert record.steps[-1]["cost"] == 60.0
    assert all(step["grad_norm"] > 0 for step in record.steps)


def test_control_none_never_predicts_and_equals_the_baseline(tmp_path, registry, configuration):
    none = run_task(configuration(), arm="none", out_dir=tmp_path / "none", registry=registry)
    base = run_task(configuration(), arm="baseline", out_dir=tmp_path / "base", registry=registry)
    assert none.summary["jumps"] == 0
    assert [e.loss for e in none.evaluations] == [e.loss for e in base.evaluations]


@pytest.mark.parametrize("arm", ["frozen", "random"])
def test_control_replaces_the_predictor_only(tmp_path, registry, arm, configuration):
    result = run_task(configuration(), arm=arm, out_dir=tmp_path, registry=registry)
    record = read_run(tmp_path)
    assert {jump["predictor"] for jump in record.jumps} == {arm}
    assert result.summary["real_steps"] == 60


def test_same_seed_gives_the_same_trace_and_another_seed_does_not(tmp_path, registry, configuration):
    traces = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run_task(configuration(run={"seed": seed}), out_dir=tmp_path / name, registry=registry)
        traces.append(trace(read_run(tmp_path / name)))
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]


def test_given_a_baseline_the_summary_has_speedup_and_gap(tmp_path, registry, configuration):
    base = run_task(configuration(), arm="baseline", out_dir=tmp_path / "base", registry=registry)
    again = run_task(
        configuration(), arm="none", out_dir=tmp_path / "x", registry=registry, baseline=base.evaluations
    )
    assert again.summary["loss_gap"] == 0.0
    assert again.summary["speedup"] > 0
    faster = run_task(
        configuration(), arm="lr-x3", out_dir=tmp_path / "y", registry=registry, baseline=base.evaluations
    )
    assert faster.summary["loss_gap"] == pytest.approx(faster.final_loss - base.final_loss)
    assert faster.summary["speedup_cost"] > 1.2


def test_interrupted_run_keeps_what_was_measured(tmp_path, registry, configuration):
    result = run_task(configuration(task={"fail_at": 33}), out_dir=tmp_path, registry=registry)
    assert result.interrupted
    record = read_run(tmp_path)
    assert record.summary["interrupted"] is True
    assert record.summary["real_steps"] == 33
    assert [e.step for e in record.evaluations] == [0, 20]
    assert result.final_loss == record.evaluations[-1].loss


def test_batches_that_end_are_a_task_error(tmp_path, registry, configuration):
    with pytest.raises(TaskError, match="ended after 12 of 60"):
        run_task(configuration(task={"finite": 12}), out_dir=tmp_path, registry=registry)
    assert len(read_run(tmp_path).steps) == 12


def test_function_that_returns_no_task_run(tmp_path, registry, configuration):
    with pytest.raises(TaskError, match="TaskRun"):
        run_task(configuration(task={"name": "toy_problem:wrong"}), out_dir=tmp_path / "x", registry=registry)
    assert not (tmp_path / "x").exists()


def test_step_records_are_thinned(tmp_path, registry, configuration):
    for arm in ("baseline", "hybrid"):
        config = configuration(metrics={"step_every": 10})
        run_task(config, arm=arm, out_dir=tmp_path / arm, registry=registry)
        assert [s["step"] for s in read_run(tmp_path / arm).steps] == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_names_what_is_registered(registry, name):
    assert check_config(preset_data(name), registry) == load_preset(name)


@pytest.mark.parametrize("task", ["logistic", "quadratic"])
def test_task_by_registry_name_learns_in_every_arm(tmp_path, registry, configuration, task):
    config = configuration(task={"name": task})
    for arm in ("baseline", "hybrid", "lr-x2"):
        result = run_task(config, arm=arm, out_dir=tmp_path / arm, registry=registry)
        assert result.final_loss < result.evaluations[0].loss
    rate = read_run(tmp_path / "lr-x2").start["config"]["task"]["learning_rate"]
    assert rate == 2 * base_rate(config, registry)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_trains_ten_steps(tmp_path, registry, name, toy):
    preset = load_preset(name)
    config = attrs.evolve(
        preset,
        run=attrs.evolve(preset.run, steps=10, framework="numpy"),
        task=attrs.evolve(preset.task, name="toy_problem:build"),
        phases=attrs.evolve(preset.phases, warmup_steps=2, full_steps=2),
    )
    result = run_task(config, out_dir=tmp_path, registry=registry)
    assert result.summary["real_steps"] == 10
    assert result.final_loss < result.evaluations[0].loss


def test_step_mode_consumes_batches_without_backward_passes(tmp_path, registry, configuration):
    config = configuration(
        phases={
            "warmup_steps": 10,
            "full_steps": 5,
            "predict_mode": "step",
            "predict_steps": 4,
            "forward_every": 2,
        }
    )
    result = run_task(config, out_dir=tmp_path, registry=registry)
    record = read_run(tmp_path)
    assert any(e["event"] == "predicted-step" for e in record.events)
    assert result.summary["backward_passes"] == result.summary["real_steps"] == 60
    assert result.summary["predicted_steps"] > 0


def test_tuning_finds_a_better_rate_that_is_not_at_the_edge(tmp_path, registry, configuration):
    tuning = tune(configuration(), out_dir=tmp_path / "t", registry=registry, factors=(1.0, 3.0))
    assert tuning.best.arm == "tuned"
    assert tuning.factor < max(tuning.losses)
    assert tuning.losses[tuning.factor] == min(tuning.losses.values())
    assert tuning.rate == pytest.approx(0.02 * tuning.factor)
    record = read_run(tmp_path / "t")
    assert record.arm == "tuned"
    assert record.final_loss == tuning.best.final_loss
    assert json.loads((tmp_path / "t" / "tuning.json").read_text())["factor"] == tuning.factor


def test_rate_arms_scale_the_configured_rate(registry, configuration):
    config = configuration(task={"learning_rate": 0.5})
    assert plan_arm(config, "lr-x4", registry).config.task.options["learning_rate"] == 2.0
    assert base_rate(configuration(), registry) == 0.02
    assert not plan_arm(config, "lr-x2.5", registry).engine
    assert plan_arm(config, "hybrid", registry).config is config


def test_f74_the_reshuffled_arm_is_the_plain_loop_on_later_batches(
    tmp_path, registry, configuration, toy, monkeypatch
):
    config = configuration()
    again = run_task(config, arm="reshuffled", out_dir=tmp_path / "again", registry=registry)
    base = run_task(config, arm="baseline", out_dir=tmp_path / "base", registry=registry)
    original = toy.build

    def later(**options):
        run = original(**options)
        return attrs.evolve(run, batches=itertools.islice(run.batches, config.run.steps, None))

    monkeypatch.setattr(toy, "build", later)
    moved = run_task(config, arm="baseline", out_dir=tmp_path / "moved", registry=registry)
    assert [(e.step, e.cost, e.loss) for e in again.evaluations] == [
        (e.step, e.cost, e.loss) for e in moved.evaluations
    ]
    assert again.evaluations[0].loss == base.evaluations[0].loss, "the same initial weights"
    assert again.final_loss != base.final_loss


def test_f74_a_stream_that_begins_anew_for_each_reader_is_passed_over_too(
    tmp_path, registry, configuration, toy, monkeypatch
):
    original, made = toy.build, {}

    class Batches:
        def __init__(self, options):
            self.options = options

        def __iter__(self):
            return original(**self.options).batches

    def build(**options):
        return attrs.evolve(original(**options), batches=Batches(options))

    for name, function in (("plain", original), ("anew", build)):
        monkeypatch.setattr(toy, "build", function)
        made[name] = run_task(configuration(), arm="reshuffled", out_dir=tmp_path / name, registry=registry)
    assert made["anew"].final_loss == made["plain"].final_loss


def test_a_stream_that_ends_early_says_so_in_the_reshuffled_arm(
    tmp_path, registry, configuration, toy, monkeypatch
):
    original = toy.build

    def short(**options):
        run = original(**options)
        return attrs.evolve(run, batches=itertools.islice(run.batches, 70))

    monkeypatch.setattr(toy, "build", short)
    config = configuration()
    assert run_task(config, arm="baseline", out_dir=tmp_path / "a", registry=registry).final_loss > 0.0
    with pytest.raises(TaskError, match="ended after 10 of 60 real steps"):
        run_task(config, arm="reshuffled", out_dir=tmp_path / "b", registry=registry)
    longer = attrs.evolve(config, run=attrs.evolve(config.run, steps=80))
    with pytest.raises(TaskError, match="reshuffled"):
        run_task(longer, arm="reshuffled", out_dir=tmp_path / "c", registry=registry)


def test_unknown_arm_and_task_without_a_rate_are_configuration_errors(
    registry, monkeypatch, configuration, toy
):
    for arm in (*ARMS, "lr-x7"):
        check_arm(arm)
    for arm in ("hybird", "lr-x0", "lr-x"):
        with pytest.raises(ConfigError, match="unknown arm"):
            check_arm(arm)
    monkeypatch.setattr(toy, "other", lambda *, framework, seed, device: None, raising=False)
    with pytest.raises(ConfigError, match=r"task\.learning_rate"):
        plan_arm(configuration(task={"name": "toy_problem:other"}), "lr-x2", registry)


def test_loss_that_is_not_finite_is_recorded_as_null(tmp_path, registry, monkeypatch, configuration, toy):
    original = toy.build

    def diverging(**options):
        task = original(**options)
        return attrs.evolve(task, evaluate=lambda: {"loss": math.nan})

    monkeypatch.setattr(toy, "build", diverging)
    result = run_task(configuration(), arm="baseline", out_dir=tmp_path, registry=registry)
    assert result.final_loss == math.inf
    assert result.summary["final_loss"] is None
    assert read_run(tmp_path).final_loss == math.inf


AVERAGE = {"enabled": True, "every": 2, "share": 0.5}


def test_averaged_weights_are_evaluated_beside_the_plain_ones(tmp_path, registry, configuration, toy):
    config = configuration(average=AVERAGE)
    result = run_task(config, arm="baseline", out_dir=tmp_path, registry=registry)
    plain = toy.build(framework="numpy", seed=0, device="cpu")
    mean, samples = None, 0
    for step, batch in enumerate(itertools.islice(plain.batches, 60), 1):
        plain.adapter.train_step(batch)
        if step % 2 == 0:
            w = {n: v.astype("float32") for n, v in plain.adapter.params.items()}
            rate = max(min(1.0, 2 / (0.5 * step)), 1 / (samples + 1))
            mean = w if mean is None else {n: (1 - rate) * mean[n] + rate * w[n] for n in w}
            samples += 1
    assert result.final_loss == plain.evaluate()["loss"], "training and plain evaluation are untouched"
    for name, value in mean.items():
        plain.adapter.params[name][...] = value
    last = read_run(tmp_path).evaluations[-1]
    assert last.metrics["averaged_loss"] == pytest.approx(plain.evaluate()["loss"], rel=1e-5)
    assert last.metrics["averaged_examples"] == 100.0
    apart = result.summary["average_seconds"]
    assert last.metrics["averaged_elapsed"] == pytest.approx(last.elapsed + apart)


def test_the_engine_s_average_is_booked_apart_too(tmp_path, registry, configuration):
    result = run_task(configuration(average=AVERAGE), out_dir=tmp_path, registry=registry)
    for evaluation in read_run(tmp_path).evaluations[1:]:
        assert evaluation.metrics["averaged_elapsed"] > evaluation.elapsed
    apart = result.summary["average_seconds"]
    assert evaluation.metrics["averaged_elapsed"] == pytest.approx(evaluation.elapsed + apart)
    assert math.isfinite(evaluation.metrics["averaged_loss"])


@pytest.mark.parametrize("arm", ["baseline", "hybrid"])
def test_a_run_says_which_weights_it_is_read_out_by(tmp_path, registry, configuration, arm):
    result = run_task(configuration(average=AVERAGE), arm=arm, out_dir=tmp_path, registry=registry)
    summary = result.summary
    for evaluation in read_run(tmp_path).evaluations:
        found = evaluation.metrics
        assert found["read_out_loss"] in (evaluation.loss, found["averaged_loss"])
    chosen = found["averaged_loss"] if summary["read_out"] == "average" else evaluation.loss
    assert (found["read_out_loss"], found["read_out_examples"]) == (chosen, 100.0)
    assert summary["read_out_loss"] == chosen
    assert found["read_out_cost"] == evaluation.cost + summary["read_out_cost"] > evaluation.cost
    apart = summary["average_seconds"] + summary["read_out_seconds"]
    assert found["read_out_elapsed"] == pytest.approx(evaluation.elapsed + apart)


def test_without_an_average_nothing_is_measured_twice(tmp_path, registry, configuration):
    run_task(configuration(), out_dir=tmp_path, registry=registry)
    assert all(set(e.metrics) == {"examples"} for e in read_run(tmp_path).evaluations)
