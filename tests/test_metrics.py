from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hybridcore.errors import MetricsError
from hybridcore.events import Event, EventBus
from hybridcore.metrics import MetricsWriter, plain_json
from hybridcore.protocols import Phase
from hybridcore.records import (
    Evaluation,
    Speedup,
    TimeToLoss,
    loss_gap,
    read_run,
    speedup,
    speedup_bound,
    time_to_loss,
)


def curve(losses, cost_per_step=1.0, seconds=0.1, every=10):
    return [
        Evaluation(i * every, i * every * cost_per_step, i * every * seconds, i * every, loss)
        for i, loss in enumerate(losses)
    ]


def strict(line: str) -> dict:
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_nothing_is_created_before_the_first_event(tmp_path):
    writer = MetricsWriter(tmp_path / "runs" / "metrics.jsonl")
    assert list(tmp_path.iterdir()) == []
    writer(Event.RUN_START, {"schema": 1})
    assert (tmp_path / "runs" / "metrics.jsonl").exists()
    writer.close()


def test_non_finite_floats_become_null_at_any_depth(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as writer:
        writer(Event.REAL_STEP, {"step": 1, "loss": math.nan, "grad_norm": math.inf, "phase": Phase.FULL})
        writer(Event.RUN_START, {"config": {"x": -math.inf, "y": (1, np.float32(2.5), np.int64(3))}})
        writer(Event.PROBE, {"loss": np.float32("nan"), "path": path})
    step, start, probe = map(strict, path.read_text().splitlines())
    assert step == {"event": "real-step", "step": 1, "loss": None, "grad_norm": None, "phase": "full"}
    assert start["config"] == {"x": None, "y": [1, 2.5, 3]}
    assert probe == {"event": "probe", "loss": None, "path": str(path)}


def test_plain_json_keeps_booleans_and_text():
    assert plain_json({"a": True, 1: None, "b": {"c": float("inf")}}) == {
        "a": True,
        "1": None,
        "b": {"c": None},
    }


def test_steps_are_thinned_but_nothing_else(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path, step_every=5) as writer:
        bus = EventBus()
        bus.listen(writer)
        for step in range(1, 21):
            bus.emit(Event.REAL_STEP, step=step)
            bus.emit(Event.PROBE, step=step)
    records = [strict(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in records if r["event"] == "real-step"] == [5, 10, 15, 20]
    assert sum(r["event"] == "probe" for r in records) == 20


def test_event_other_than_a_step_reaches_the_disk_while_the_file_is_open(tmp_path):
    path = tmp_path / "m.jsonl"
    writer = MetricsWriter(path)
    writer(Event.REAL_STEP, {"step": 1})
    assert path.read_text() == ""
    writer(Event.EVALUATION, {"step": 1})
    assert len(path.read_text().splitlines()) == 2
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer(Event.PROBE, {})


def write(path, *records, tail=""):
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
    return path


START = {"event": "run-start", "schema": 1, "arm": "hybrid", "seed": 3}
EVALUATION = {
    "event": "evaluation", "step": 10, "cost": 11.0, "elapsed": 0.5, "backward_passes": 10,
    "loss": 0.25, "accuracy": 0.9,
}  # fmt: skip


def test_the_end_of_a_run_is_on_the_disk_before_its_summary(tmp_path):
    """A kill after `summary.json`, which says that the run is finished, must not cost its last lines."""
    with MetricsWriter(tmp_path / "m.jsonl") as writer:
        writer(Event.PROBE, {"step": 1})  # the first event is flushed, the next ones within a second not
        writer(Event.REAL_STEP, {"step": 1})
        writer(Event.RUN_END, {"real_steps": 1})
        kinds = [json.loads(line)["event"] for line in writer.path.read_text().splitlines()]
        assert kinds == ["probe", "real-step", "run-end"]


def test_round_trip_of_every_kind(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer(Event.RUN_START, {k: v for k, v in START.items() if k != "event"})
        writer(Event.REAL_STEP, {"step": 1, "loss": 2.0})
        writer(Event.JUMP, {"step": 1, "horizon": 5})
        writer(Event.JUMP_REFUSED, {"step": 1, "reason": "too long"})
        writer(Event.VERDICT, {"step": 9, "kept": True})
        writer(Event.PHASE_START, {"step": 9, "phase": Phase.FULL})
        writer(Event.EVALUATION, {k: v for k, v in EVALUATION.items() if k != "event"})
        writer(Event.RUN_END, {"real_steps": 10, "final_loss": 0.25})
    record = read_run(path.parent)
    assert (record.arm, record.seed, record.final_loss) == ("hybrid", 3, 0.25)
    assert record.evaluations == (Evaluation(10, 11.0, 0.5, 10, 0.25, {"accuracy": 0.9}),)
    assert [len(x) for x in (record.steps, record.jumps, record.refused, record.verdicts, record.phases)] == [
        1
    ] * 5
    assert record.phases[0]["phase"] == "full"
    assert record.summary["real_steps"] == 10
    assert len(record.events) == 8


def test_truncated_last_line_is_tolerated_and_damage_before_it_is_not(tmp_path):
    record = read_run(write(tmp_path / "a.jsonl", START, EVALUATION, tail='{"event":"real-st'))
    assert len(record.evaluations) == 1
    assert record.summary is None
    damaged = tmp_path / "b.jsonl"
    damaged.write_text(json.dumps(START) + '\n{"event":"real-st\n' + json.dumps(EVALUATION) + "\n")
    with pytest.raises(MetricsError, match="line 2"):
        read_run(damaged)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ('{"event":"evaluation"}\n', 1),
        ('{"event":"run-start","schema":99}\n', 1),
        (json.dumps(START) + '\n{"event":"evaluation","step":1}\n', 2),
        (json.dumps(START) + '\n{"event":"probe","loss":NaN}\n', 2),
        (json.dumps(START) + "\n[1]\n", 2),
        (json.dumps(START) + "\n\n", 2),
    ],
)
def test_damaged_file_names_its_line(tmp_path, text, line):
    path = tmp_path / "m.jsonl"
    path.write_text(text)
    with pytest.raises(MetricsError, match=f"line {line}") as caught:
        read_run(path)
    assert caught.value.where == f"{path}:{line}"


def test_missing_file_is_a_metrics_error(tmp_path):
    with pytest.raises(MetricsError, match="cannot be read"):
        read_run(tmp_path / "none.jsonl")


def test_validation_loss_that_was_not_finite_counts_as_infinite(tmp_path):
    record = read_run(write(tmp_path / "m.jsonl", START, {**EVALUATION, "loss": None}))
    assert record.final_loss == math.inf
    assert not record.time_to_loss(1e9).reached


def test_time_to_loss_interpolates_and_takes_the_first_crossing():
    found = time_to_loss(curve([4.0, 2.0, 3.0, 1.0]), 2.5)
    assert (found.step, found.cost, found.seconds) == pytest.approx((7.5, 7.5, 0.75))
    assert time_to_loss(curve([4.0, 2.0]), 5.0).step == 0
    assert time_to_loss(curve([4.0, 2.0]), 1.0).seconds == math.inf
    after_divergence = time_to_loss(curve([math.inf, 2.0]), 3.0)
    assert after_divergence.step == 10


def test_a_target_that_the_untrained_model_meets_takes_no_time():
    """The seconds before the first step are set-up, and their ratio no speed-up."""
    slow, fast = (
        [Evaluation(0, 0.0, setup, 0, 2.0), Evaluation(9, 9.0, 1.0, 9, 8.0)] for setup in (0.5, 0.01)
    )
    assert time_to_loss(slow, 8.0) == TimeToLoss(0.0, 0.0, 0.0)
    assert speedup(slow, fast) == Speedup(1.0, 1.0, 8.0)


def test_speedup_is_measured_to_the_final_loss_of_the_baseline():
    baseline = curve([4.0, 3.0, 2.0, 1.0])
    found = speedup(curve([4.0, 1.0, 0.5], cost_per_step=1.5, seconds=0.05), baseline)
    assert found.target == 1.0
    assert found.cost == pytest.approx(30 / 15)
    assert found.wall == pytest.approx(3.0 / 0.5)
    assert speedup(baseline, baseline).wall == pytest.approx(1.0)
    missed = speedup(curve([4.0, 3.9]), baseline)
    assert (missed.wall, missed.cost) == (0.0, 0.0)


def test_without_a_baseline_there_is_no_speedup_and_no_gap():
    run = curve([4.0, 1.0])
    assert speedup(run, None) is None
    assert speedup(run, []) is None
    assert speedup(run, curve([math.inf])) is None
    assert loss_gap(run, None) is None
    assert loss_gap(run, curve([4.0, 0.75])) == pytest.approx(0.25)
    assert loss_gap(curve([math.inf]), run) is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_bound_is_the_cost_of_all_steps_over_the_cost_of_the_remaining_work(share):
    forward, backward, steps = 1.0, 2.0, 1000
    full = steps * (forward + backward)
    left = steps * forward + steps * (1 - share) * backward
    assert speedup_bound(share, forward, backward) == pytest.approx(full / left)
    assert speedup_bound(1.0, forward=0.0) == math.inf
