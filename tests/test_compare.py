from __future__ import annotations

import itertools
import json
import math

import attrs
import pytest

from hybridcore.compare import compare, read_comparison, summarise
from hybridcore.errors import ConfigError, MetricsError
from hybridcore.records import Evaluation, RunRecord, read_run
from hybridcore.report.table import arm_cells, arm_columns
from hybridcore.runner import run_task
from hybridcore.tuning import tune


def record(tmp_path, arm, seed, losses, *, seconds=0.1, summary=None):
    evaluations = tuple(
        Evaluation(10 * i, 10.0 * i, 10 * i * seconds, 10 * i, loss) for i, loss in enumerate(losses)
    )
    ended = {"backward_passes": 30, "predicted_steps": 0.0, "speedup_bound": 1.0, "interrupted": False}
    start = {"arm": arm, "seed": seed}
    return RunRecord(
        tmp_path, start, (), evaluations, (), (), (), (), (), ended if summary is None else summary
    )


def test_all_arms_and_seeds_are_run_and_written(tmp_path, registry, configuration):
    out = tmp_path / "cmp"
    arms = ("hybrid", "none", "lr-x3")
    result = compare(configuration(), out_dir=out, arms=arms, seeds=(0, 1, 2), registry=registry)
    assert [row.arm for row in result.rows] == ["baseline", "hybrid", "none", "lr-x3"]
    assert all(row.runs == 3 for row in result.rows)
    base, none = result.row("baseline"), result.row("none")
    assert (base.speedup_cost, base.speedup_wall, base.loss_gap, base.missed) == (1.0, 1.0, 0.0, 0)
    assert none.loss_gap == 0.0
    assert none.cost_to_target == base.cost_to_target
    assert result.row("lr-x3").speedup_cost > 1.2
    for seed, target in result.targets.items():
        assert target == read_run(out / "baseline" / f"seed-{seed}").final_loss
    assert read_comparison(out) == result

    written = json.loads((out / "comparison.json").read_text())
    assert len(written["runs"]) == 12
    assert {run["directory"] for run in written["runs"]} == {
        f"{arm}/seed-{seed}" for arm in ("baseline", *arms) for seed in range(3)
    }
    assert written["rows"][0]["arm"] == "baseline"
    summary = json.loads((out / "lr-x3" / "seed-1" / "summary.json").read_text())
    assert summary["speedup_cost"] > 1.0
    assert summary["loss_gap"] < 0.0


def test_arms_share_initial_weights_and_batches(tmp_path, registry, configuration):
    result = compare(
        configuration(), out_dir=tmp_path, arms=("hybrid", "random"), seeds=(5,), registry=registry
    )
    first = {r.arm: (r.evaluations[0].loss, r.steps[0]["loss"], r.steps[5]["loss"]) for r in result.records}
    assert len(set(first.values())) == 1


def test_order_of_arms_is_reversed_in_every_other_seed(tmp_path, registry, configuration):
    order = []

    def note(event, payload):
        if event == "run-start":
            order.append((payload["arm"], payload["seed"]))

    compare(
        configuration(), out_dir=tmp_path, arms=("hybrid",), seeds=(0, 1), registry=registry, progress=note
    )
    assert order == [("baseline", 0), ("hybrid", 0), ("hybrid", 1), ("baseline", 1)]


def test_tuned_is_swept_with_the_first_seed_only(tmp_path, registry, configuration):
    result = compare(configuration(), out_dir=tmp_path, arms=("tuned",), seeds=(0, 1), registry=registry)
    assert (tmp_path / "tuned" / "seed-0" / "tuning.json").exists()
    assert not (tmp_path / "tuned" / "seed-1" / "candidates").exists()
    rates = {r.start["config"]["task"]["learning_rate"] for r in result.records if r.arm == "tuned"}
    assert len(rates) == 1
    assert [r.arm for r in result.records] == ["baseline", "baseline", "tuned", "tuned"]


def test_missed_target_counts_as_infinite_time_and_no_speed(tmp_path):
    runs = [
        record(tmp_path, "baseline", 0, [3.0, 2.0, 1.0]),
        record(tmp_path, "hybrid", 0, [3.0, 2.5, 2.0]),
    ]
    row = summarise(runs, tmp_path).row("hybrid")
    assert (row.missed, row.seconds_to_target, row.cost_to_target) == (1, math.inf, math.inf)
    assert (row.speedup_wall, row.speedup_cost) == (0.0, 0.0)


def test_speedups_are_ratios_per_seed_with_median_and_minimum(tmp_path):
    runs = []
    for seed, seconds in enumerate((0.05, 0.1, 0.2)):
        runs.append(record(tmp_path, "baseline", seed, [3.0, 2.0, 1.0]))
        runs.append(record(tmp_path, "hybrid", seed, [3.0, 1.0, 0.5], seconds=seconds))
    row = summarise(runs, tmp_path).row("hybrid")
    assert row.speedup_cost == row.speedup_cost_low == pytest.approx(2.0)
    assert row.speedup_wall == pytest.approx(2.0)
    assert row.speedup_wall_low == pytest.approx(1.0)
    assert row.speedup_wall_interval == pytest.approx((1.0, 4.0))


def test_without_a_baseline_nothing_is_claimed(tmp_path):
    row = summarise([record(tmp_path, "hybrid", 0, [3.0, 1.0])], tmp_path).row("hybrid")
    assert math.isnan(row.speedup_wall)
    assert math.isnan(row.loss_gap)
    assert row.final_loss == 1.0


def test_interrupted_comparison_keeps_the_finished_runs(tmp_path, registry, configuration, toy):
    built = itertools.count()
    original = toy.build

    def build(**options):
        third_measured = next(built) == 4  # two builds are the warm-up
        return original(**options, fail_at=30 if third_measured else None)

    toy.build = build
    result = compare(
        configuration(), out_dir=tmp_path, arms=("hybrid", "none"), seeds=(0, 1), registry=registry
    )
    assert result.interrupted
    assert [row.arm for row in result.rows] == ["baseline", "hybrid"]
    assert json.loads((tmp_path / "comparison.json").read_text())["interrupted"] is True
    assert len(result.records) == 3


def test_folder_with_runs_is_not_mixed_with_new_ones(tmp_path, registry, configuration):
    config = configuration()
    short = attrs.evolve(config, run=attrs.evolve(config.run, steps=5))
    compare(short, out_dir=tmp_path, arms=(), seeds=(0,), registry=registry)
    with pytest.raises(MetricsError, match="holds a run already"):
        compare(short, out_dir=tmp_path, arms=(), seeds=(0,), registry=registry)


def test_a_comparison_goes_on_where_it_stopped(tmp_path, registry, configuration, toy):
    out = tmp_path / "cut"
    built = itertools.count()
    original = toy.build

    def build(**options):
        return original(**options, fail_at=30 if next(built) == 4 else None)

    toy.build = build
    arms = ("hybrid", "none", "tuned")
    config = configuration(task={"learning_rate": 0.02})
    cut = compare(config, out_dir=out, arms=arms, seeds=(0, 1), registry=registry)
    assert cut.interrupted
    kept = {p: p.read_bytes() for arm in ("baseline", "hybrid") for p in out.glob(f"{arm}/*/metrics.jsonl")}
    assert len(kept) == 2
    toy.build = original
    whole = compare(config, out_dir=out, arms=arms, seeds=(0, 1), registry=registry, resume=True)
    assert not whole.interrupted
    assert {path: path.read_bytes() for path in kept} == kept
    assert all(row.runs == 2 for row in whole.rows)
    rates = {r.start["config"]["task"]["learning_rate"] for r in whole.records if r.arm == "tuned"}
    assert len(rates) == 1
    fresh = compare(config, out_dir=tmp_path / "fresh", arms=arms, seeds=(0, 1), registry=registry)
    assert [(r.arm, r.final_loss, r.speedup_cost) for r in fresh.rows] == [
        (r.arm, r.final_loss, r.speedup_cost) for r in whole.rows
    ]
    again = compare(config, out_dir=out, arms=arms, seeds=(0, 1), registry=registry, resume=True)
    assert again.records == whole.records
    other = configuration(task={"learning_rate": 0.01})
    with pytest.raises(MetricsError, match="another configuration"):
        compare(other, out_dir=out, arms=arms, seeds=(0, 1), registry=registry, resume=True)


def test_a_sweep_of_the_rate_that_was_cut_is_completed_and_never_taken_for_the_whole(
    tmp_path, registry, configuration, toy
):
    """F73, F74: a baseline tuned on half of its rates would be a weak one."""
    config, original = configuration(task={"learning_rate": 0.02}), toy.build
    fresh = compare(config, out_dir=tmp_path / "fresh", arms=("tuned",), seeds=(0, 1), registry=registry)
    tuning = json.loads((tmp_path / "fresh" / "tuned" / "seed-0" / "tuning.json").read_text())
    built, out = [], tmp_path / "cut"

    def build(**options):
        built.append(options["learning_rate"])
        return original(**options, fail_at=30 if len(built) == 6 else None)

    toy.build = build  # two builds are the warm-up, one the baseline, two the first rates
    cut = compare(config, out_dir=out, arms=("tuned",), seeds=(0, 1), registry=registry)
    assert cut.interrupted and built[3:] == pytest.approx([0.02, 0.06, 0.2])
    assert [row.arm for row in cut.rows] == ["baseline"]
    assert [row.arm for row in read_comparison(out).rows] == ["baseline"]
    kept = {p: p.read_bytes() for x in ("x1", "x3") for p in out.rglob(f"{x}/metrics.jsonl")}
    assert len(kept) == 2
    whole = compare(config, out_dir=out, arms=("tuned",), seeds=(0, 1), registry=registry, resume=True)
    assert {path: path.read_bytes() for path in kept} == kept
    assert json.loads((out / "tuned" / "seed-0" / "tuning.json").read_text()) == tuning
    assert [(r.arm, r.final_loss, r.speedup_cost) for r in whole.rows] == [
        (r.arm, r.final_loss, r.speedup_cost) for r in fresh.rows
    ]
    (out / "tuned" / "seed-0" / "summary.json").unlink()  # killed while the best run was copied
    built.clear()
    again = compare(config, out_dir=out, arms=("tuned",), seeds=(0, 1), registry=registry, resume=True)
    assert len(built) == 2, "the warm-up; every rate was finished"
    assert again.records == whole.records
    other = configuration(task={"learning_rate": 0.02}, run={"steps": 30})
    (out / "tuned" / "seed-0" / "summary.json").unlink()
    with pytest.raises(MetricsError, match="another configuration"):
        tune(other, out_dir=out / "tuned" / "seed-0", registry=registry)


def test_a_target_set_in_advance_replaces_the_baselines_own(tmp_path, registry, configuration):
    runs = [
        record(tmp_path, "baseline", 0, [3.0, 2.0, 1.0]),
        record(tmp_path, "hybrid", 0, [3.0, 1.0, 0.5]),
        record(tmp_path, "random", 0, [3.0, 2.8, 2.6]),
    ]
    result = summarise(runs, tmp_path, target=2.0)
    assert result.targets == {0: 2.0}
    assert result.row("hybrid").speedup_cost == pytest.approx(2.0)
    assert (result.row("random").missed, result.row("random").speedup_cost) == (1, 0.0)
    assert result.row("hybrid").loss_gap == -0.5
    beyond = summarise(runs, tmp_path, target=0.5)
    assert beyond.row("hybrid").speedup_cost == math.inf, "the baseline never reaches it"
    assert beyond.row("baseline").speedup_cost == 0.0

    real = compare(
        configuration(), out_dir=tmp_path / "r", arms=("hybrid",), seeds=(0,), registry=registry, target=0.9
    )
    assert real.targets == {0: 0.9}
    assert read_comparison(tmp_path / "r") == real
    assert json.loads((tmp_path / "r" / "hybrid" / "seed-0" / "summary.json").read_text())["target"] == 0.9


def test_unknown_arm_fails_before_anything_runs(tmp_path, registry, configuration):
    with pytest.raises(ConfigError, match="did you mean 'hybrid'"):
        compare(configuration(), out_dir=tmp_path / "x", arms=("hybird",), registry=registry)
    assert not (tmp_path / "x").exists()


def test_folder_without_runs_is_a_metrics_error(tmp_path):
    with pytest.raises(MetricsError, match="no run"):
        read_comparison(tmp_path)


def test_averaged_read_outs_are_rows_of_their_own_against_the_plain_target(tmp_path):
    def averaged(arm, plain, mean):
        made = record(tmp_path, arm, 0, plain)
        evaluations = tuple(
            attrs.evolve(
                e,
                metrics={
                    "averaged_loss": loss,
                    "averaged_elapsed": 2 * e.elapsed,
                    "read_out_loss": min(e.loss, math.inf if loss is None else loss),
                    "read_out_cost": e.cost + 1.0,
                },
            )
            for e, loss in zip(made.evaluations, mean, strict=True)
        )
        return attrs.evolve(made, evaluations=evaluations)

    runs = [
        averaged("baseline", [3.0, 2.0, 1.0], [3.0, 1.0, 0.5]),
        averaged("hybrid", [3.0, 1.5, 1.0], [3.0, None, 0.9]),
        averaged("random", [3.0, 2.5, 2.0], [3.0, 2.0, 1.0]),
    ]
    result = summarise(runs, tmp_path)
    names = [row.arm for row in result.rows]
    own = ["baseline", "baseline, averaged", "baseline, read out"]
    assert names == [*own, "hybrid", "hybrid, averaged", "hybrid, read out", "random"]
    assert result.targets == {0: 1.0}
    control = result.row("baseline, averaged")
    assert (control.speedup_cost, control.speedup_wall) == (2.0, 1.0)
    assert (control.final_loss, control.loss_gap) == (0.5, -0.5)
    late = result.row("hybrid, averaged")
    assert (late.cost_to_target, late.final_loss) == (20.0, 0.9)
    assert runs[1].averaged.time_to_loss(0.95).cost == 20.0
    chosen = result.row("hybrid, read out")
    assert (chosen.cost_to_target, chosen.final_loss) == (pytest.approx(11.0 + 10.0 * 0.5 / 0.6), 0.9)
    assert result.row("hybrid").speedup_cost == 1.0


def test_comparison_of_a_real_run_shows_both_read_outs(tmp_path, registry, configuration):
    config = configuration(average={"enabled": True, "every": 2})
    result = compare(config, out_dir=tmp_path, arms=("hybrid", "none"), seeds=(0,), registry=registry)
    names = [row.arm for row in result.rows]
    own = ["baseline", "baseline, averaged", "baseline, read out"]
    assert names == [*own, "hybrid", "hybrid, averaged", "hybrid, read out", "none"]
    assert result.row("hybrid, read out").final_loss == result.records[1].read_out.final_loss
    assert result.row("hybrid, averaged").final_loss == result.records[1].averaged.final_loss
    assert read_comparison(tmp_path) == result


def test_runs_of_a_sweep_are_not_taken_for_seeds_of_one_comparison(tmp_path, registry, configuration):
    for rate in (0.01, 0.02):
        config = configuration(run={"steps": 10}, task={"learning_rate": rate})
        run_task(config, arm="baseline", out_dir=tmp_path / f"rate-{rate}", registry=registry)
    with pytest.raises(MetricsError, match="two runs of arm 'baseline' have seed") as caught:
        read_comparison(tmp_path)
    assert "sweep.json" in caught.value.fix
    assert len(read_comparison(tmp_path / "rate-0.01").records) == 1


def test_a_target_before_the_first_evaluation_is_marked_and_an_interval_shown(tmp_path):
    curves = {
        "baseline": [3.0, 2.5, 2.0],
        "hybrid": [3.0, 2.2, 1.0],
        "lr-x10": [3.0, 1.0, 0.5],
        "random": [3.0, 2.9, 2.8],
    }
    runs = [record(tmp_path, arm, seed, losses) for arm, losses in curves.items() for seed in range(3)]
    result = summarise(runs, tmp_path)
    unresolved = {row.arm: row.unresolved for row in result.rows}
    assert unresolved == {"baseline": 0, "hybrid": 0, "random": 0, "lr-x10": 3}
    cells = {
        arm: dict(zip(arm_columns(), arm_cells(result.row(arm)), strict=True)) for arm in ("lr-x10", "random")
    }
    assert cells["lr-x10"]["speed-up, cost"] == "~4.00 (4.00) [4.00, 4.00]", "20 over 5, drawn from the start"
    assert cells["random"]["speed-up, cost"] == "missed"
