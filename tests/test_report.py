from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html import escape

import attrs
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from hybridcore.compare import compare, read_comparison
from hybridcore.errors import PluginError
from hybridcore.records import read_run
from hybridcore.report.data import save_data
from hybridcore.report.figure import draw, save_figure
from hybridcore.report.overhead import draw_overhead, overheads
from hybridcore.report.page import render_page, save_page
from hybridcore.report.phases import phase_spans
from hybridcore.report.profile import draw_profile, performance_ratios, share_within
from hybridcore.report.table import comparison_table, narrow_tables, number, overhead_table, summary_table


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, registry, shared_configuration):
    folder = tmp_path_factory.mktemp("comparison")
    arms = ("hybrid", "lr-x3")
    return compare(shared_configuration(), out_dir=folder, arms=arms, seeds=(0, 1), registry=registry)


def text(renderable) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(renderable)
    return console.export_text()


def test_table_shows_every_arm_with_its_numbers(comparison):
    lines = text(comparison_table(comparison)).splitlines()
    row = next(line for line in lines if line.startswith("lr-x3"))
    expected = comparison.row("lr-x3")
    assert number(expected.final_loss) in row
    assert f"{expected.speedup_cost:.2f} ({expected.speedup_cost_low:.2f})" in row
    assert any(line.startswith("baseline") and "1.00 (1.00)" in line for line in lines)


def test_summary_table_names_interruption_and_baseline_only_where_they_are(comparison):
    summary = dict(comparison.records[0].summary)
    plain = text(summary_table(summary))
    assert "speed-up" not in plain
    assert "interrupted" not in plain
    assert "read out" not in plain
    kept = text(summary_table({**summary, "read_out": "average", "read_out_loss": 0.25}))
    assert "the average of its weights, 0.25" in kept
    full = text(summary_table({**summary, "interrupted": True, "speedup": 2.0, "speedup_cost": 1.5}))
    assert "2 wall clock, 1.5 cost" in full
    assert "interrupted" in full


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (float("inf"), "inf"),
        (3.0, "3"),
        (0.123456, "0.1235"),
        (0.0, "0"),
        (10049.6, "10050"),
    ],
)
def test_numbers_are_short(value, shown):
    assert number(value) == shown


def test_figure_draws_the_recorded_curves_against_both_axes(comparison):
    figure = draw(comparison)
    wall, cost, wall_events, cost_events = figure.axes
    hybrid = next(r for r in comparison.records if r.arm == "hybrid" and r.seed == 0)
    for axis, key in ((wall, "elapsed"), (cost, "cost")):
        line = next(line for line in axis.lines if line.get_label() == "hybrid")
        assert list(line.get_xdata()) == [getattr(e, key) for e in hybrid.evaluations]
        assert list(line.get_ydata()) == [e.loss for e in hybrid.evaluations]
        target = next(line for line in axis.lines if str(line.get_label()).startswith("target"))
        assert target.get_ydata()[0] == comparison.targets[0]
    for axis in (wall_events, cost_events):
        drawn = [len(collection.get_segments()) for collection in axis.collections]
        kept = [v for v in hybrid.verdicts if v["kept"]]
        judged = sum(v["gain"] is not None for v in kept)
        failed = len(hybrid.verdicts) - len(kept)
        assert drawn == [len(hybrid.jumps), len(kept) - judged, judged, failed]
    best = comparison.row("lr-x3")
    assert best.unresolved, "its time to the target is drawn, not measured"
    assert f"best control lr-x3: ~{best.speedup_wall:.2f}x" in figure.get_suptitle()
    assert {t.get_text() for t in figure.legends[0].get_texts()} >= {"baseline", "hybrid", "lr-x3"}


def test_figure_and_page_are_written(comparison, tmp_path):
    png = save_figure(comparison, tmp_path / "new" / "r.png")
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = save_page(comparison, tmp_path / "r.html").read_text()
    assert "<td>lr-x3</td>" in page
    assert "data:image/png;base64," in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_phases_are_shaded_where_they_were(comparison):
    hybrid = next(r for r in comparison.records if r.arm == "hybrid" and r.seed == 0)
    spans = phase_spans(hybrid)
    assert spans["warmup"] == [(0.0, 10.0)]
    steps = {phase: {s["step"] for s in hybrid.steps if s["phase"] == phase} for phase in spans}
    for phase, own in spans.items():
        inside = {s["step"] for s in hybrid.steps if any(a < s["step"] <= b for a, b in own)}
        assert inside == steps[phase], phase
    labels = {text.get_text() for text in draw(comparison).legends[0].get_texts()}
    assert {"phase warmup", "phase correct"} <= labels


def test_phases_of_a_trial_that_announces_only_its_first_jump_are_those_of_its_steps(
    tmp_path, registry, configuration, toy
):
    """Jumps after each real step: the Predict and Correct phases between them are in no event."""
    from hybridcore.runner import run_task

    config = configuration(controller={"name": "credit"}, run={"steps": 200, "evaluate_every": 50})
    run_task(config, out_dir=tmp_path, registry=registry)
    record = read_run(tmp_path)
    announced = sum(p["phase"] == "predict" for p in record.phases)
    assert 0 < announced < len(record.jumps), "the case at hand"
    spans = phase_spans(record)
    for step in record.steps:
        inside = [phase for phase, own in spans.items() if any(a < step["step"] <= b for a, b in own)]
        assert inside == [step["phase"]], step["step"]


def test_a_control_that_takes_far_longer_is_cut_by_what_is_drawn_of_it(comparison):
    """The other seeds of a control are not drawn, and leave no empty room on the right."""
    runs = []
    for record in comparison.records:
        slow = 10.0 if (record.arm, record.seed) == ("lr-x3", 1) else 1.0
        curve = tuple(attrs.evolve(e, elapsed=slow * e.step / 60) for e in record.evaluations)
        runs.append(attrs.evolve(record, evaluations=curve))
    wall = draw(attrs.evolve(comparison, records=tuple(runs))).axes[0]
    assert wall.get_xlim()[1] < 1.5
    runs = [
        attrs.evolve(r, evaluations=tuple(attrs.evolve(e, elapsed=9 * e.elapsed) for e in r.evaluations))
        if (r.arm, r.seed) == ("lr-x3", 0)
        else r
        for r in runs
    ]
    wall = draw(attrs.evolve(comparison, records=tuple(runs))).axes[0]
    assert wall.get_xlim()[1] == pytest.approx(1.5)


def test_the_target_that_was_set_in_advance_is_not_called_the_baselines(tmp_path, registry, configuration):
    common = {"arms": ("hybrid",), "seeds": (0,), "registry": registry}
    own = compare(configuration(), out_dir=tmp_path / "own", **common)
    line = f"Time to the baseline's final validation loss ({own.targets[0]:.4g})"
    assert line in text(comparison_table(own)) and f"<p>{escape(line)}.</p>" in render_page(own)
    preset = compare(configuration(), out_dir=tmp_path / "preset", target=0.9, **common)
    line = "Time to a validation loss of 0.9, set in advance"
    assert line in text(comparison_table(preset)) and f"<p>{line}.</p>" in render_page(preset)
    assert line in text(comparison_table(read_comparison(tmp_path / "preset")))


def test_narrow_tables_hold_every_cell_of_the_wide_one(comparison):
    wide = text(comparison_table(comparison)).split()
    narrow = [word for table in narrow_tables(comparison) for word in text(table).split()]
    missing = [word for word in wide if word not in narrow]
    assert missing == []


def test_peak_memory_stands_beside_the_paired_baselines(comparison):
    """F90: made-up bytes; seed 0 takes 30 MiB more than its baseline, seed 1 takes 10 more."""
    peaks = {("baseline", 0): 100, ("baseline", 1): 140, ("hybrid", 0): 130, ("hybrid", 1): 150}
    runs = []
    for record in comparison.records:
        mib = peaks.get((record.arm, record.seed))
        found = {"resident_peak_bytes": None if mib is None else mib * 2**20, "device_peak_bytes": None}
        runs.append(attrs.evolve(record, summary={**record.summary, **found}))
    made = attrs.evolve(comparison, records=tuple(runs))
    (found,) = overheads(made)
    assert (found.resident, found.resident_extra) == (140.0, 20.0)
    assert math.isnan(found.device) and math.isnan(found.device_extra)
    shown = text(overhead_table([found]))
    assert "140" in shown and "+20" in shown and "device" not in shown
    assert "<td>140</td><td>+20</td>" in render_page(made)
    on_card = attrs.evolve(found, device=64.0, device_extra=-8.0)
    assert "peak on the device, MiB" in text(overhead_table([on_card]))
    figure = Figure()
    draw_overhead(figure, [on_card])
    widths = [[bar.get_width() for bar in axis.patches] for axis in figure.axes[2:]]
    assert widths == [[140.0, 120.0], [64.0, 72.0]]
    assert [text.get_text() for axis in figure.axes[2:] for text in axis.texts] == ["+20", "-8"]


def test_an_interrupted_run_has_no_overhead(comparison):
    cut = tuple(
        attrs.evolve(r, summary={**r.summary, "interrupted": True}) if r.arm == "hybrid" else r
        for r in comparison.records
    )
    assert overheads(attrs.evolve(comparison, records=cut)) == ()


def test_overhead_is_the_ratio_of_paired_times(comparison):
    ratios = []
    for seed in (0, 1):
        time = {r.arm: r.summary["elapsed"] for r in comparison.records if r.seed == seed}
        ratios.append(time["hybrid"] / time["baseline"] - 1.0)
    (found,) = overheads(comparison)
    assert found.label == "hybrid", "arms without an engine have none"
    assert found.extra_time == pytest.approx(sum(ratios) / 2)
    assert found.weights == pytest.approx(4 * 33 / 2**20)
    hybrid = [r.summary for r in comparison.records if r.arm == "hybrid"]
    assert found.history == max(s["history_bytes"] for s in hybrid) / 2**20 > 0
    assert "Overhead and memory" in render_page(comparison)


def test_data_holds_what_the_page_shows(comparison, tmp_path):
    data = json.loads(save_data(comparison, tmp_path / "new" / "report.json").read_text())
    assert [row["arm"] for row in data["rows"]] == ["baseline", "hybrid", "lr-x3"]
    assert data["rows"][1]["speedup_cost"] == comparison.row("hybrid").speedup_cost
    assert len(data["runs"]) == len(comparison.records)
    hybrid = next(run for run in data["runs"] if run["arm"] == "hybrid")
    assert hybrid["phases"]["warmup"] == [[0.0, 10.0]]
    assert data["overhead"][0]["label"] == "hybrid"


def test_profile_is_the_share_of_problems_within_a_factor():
    """Against the definition, counted problem by problem, on random times with misses."""
    rng = np.random.default_rng(0)
    arms = ("a", "b", "c")
    times = {
        f"p{i}": {arm: rng.choice([rng.uniform(1, 9), math.inf], p=[0.8, 0.2]) for arm in arms}
        for i in range(40)
    }
    times["nobody"] = dict.fromkeys(arms, math.inf)
    ratios = performance_ratios(times, arms)
    solved = [t for t in times.values() if min(t.values()) < math.inf]
    for factor in (1.0, 1.05, 2.0, 5.0):
        for arm in arms:
            expected = sum(t[arm] <= factor * min(t.values()) * (1 + 1e-12) for t in solved) / len(solved)
            assert share_within(ratios[arm], factor * (1 + 1e-12)) == pytest.approx(expected)
    axis = Figure().subplots()
    draw_profile(axis, ratios, {})
    line = axis.lines[0]
    for x, y in zip(line.get_xdata()[1:-1], line.get_ydata()[1:-1], strict=True):
        assert share_within(ratios["a"], x) >= y - 1e-12
    assert line.get_ydata()[-1] == pytest.approx(sum(r < math.inf for r in ratios["a"]) / len(ratios["a"]))


def test_page_of_a_single_run_and_text_is_escaped(tmp_path, registry, configuration, toy):
    from hybridcore.runner import run_task

    run_task(configuration(), out_dir=tmp_path / "r", registry=registry)
    single = read_comparison(tmp_path / "r")
    assert "Hybrid run, seed 0" in render_page(single)
    single.records[0].start["task"] = "<script>"
    assert "<script>" not in render_page(single)


def test_without_matplotlib_the_error_names_the_command(comparison, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PluginError, match="figures need matplotlib") as caught:
        draw(comparison)
    assert caught.value.fix == "pip install 'hybridcore[report]'"


def test_import_of_the_report_does_not_import_matplotlib():
    code = (
        "import sys, hybridcore.report.figure, hybridcore.report.page\nassert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
