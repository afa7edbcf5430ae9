"""The figure, table and page of a sweep say what its runs say (F76, F90)."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from hybridcore.report.sweep_figure import draw_sweep, save_sweep_figure, series_of, swept_key
from hybridcore.report.sweep_page import save_sweep_page, sweep_cells, sweep_columns
from hybridcore.sweep_results import Sweep, SweepRun

RATE, HORIZON = "task.learning_rate", "controller.fixed.horizon"


def run(settings, seed, loss, gain=math.nan, wall=math.nan, baseline=None, error=None):
    place = "-".join(f"{value}" for value in settings.values()) or "all"
    folder = f"{place}/seed-{seed}" if baseline is not None else f"{place}-base/seed-{seed}"
    return SweepRun(settings, seed, folder, loss, 2.0, 50.0, {}, error, False, wall, gain, baseline)


def made(runs, baselines=(), interrupted=False):
    return Sweep(Path("swept"), "hybrid", tuple(runs), interrupted, tuple(baselines), "toy", "numpy")


@pytest.fixture
def rates():
    """Three rates over two decades, two seeds, each with its baseline."""
    losses = {0.001: (1.0, 1.2), 0.01: (0.5, 0.7), 0.1: (0.2, 0.2)}
    gains = {0.001: (8.0, 4.0), 0.01: (3.0, 2.0), 0.1: (1.0, 0.0)}
    bases = [run({RATE: r}, s, 2 * v[s]) for r, v in losses.items() for s in (0, 1)]
    runs = [
        run({RATE: r}, s, v[s], gains[r][s], gains[r][s] / 2, f"{r}-base/seed-{s}")
        for r, v in losses.items()
        for s in (0, 1)
    ]
    return made(runs, bases)


def line_of(axis, label):
    """Points of the line with this label, of an errorbar its middle."""
    for container in axis.containers:
        if container.get_label() == label:
            return container.lines[0]
    return next(line for line in axis.lines if line.get_label() == label)


def ends_of(axis, label):
    container = next(c for c in axis.containers if c.get_label() == label)
    return [tuple(y for _, y in segment) for segment in container.lines[2][0].get_segments()]


def test_means_and_standard_errors_stand_at_their_rates_beside_the_baseline(rates):
    left, right = draw_sweep(rates).axes
    assert (left.get_xscale(), right.get_xscale()) == ("log", "log")
    for label, factor in (("hybrid", 1.0), ("baseline", 2.0)):
        line = line_of(left, label)
        assert list(line.get_xdata()) == [0.001, 0.01, 0.1]
        assert list(line.get_ydata()) == pytest.approx([1.1 * factor, 0.6 * factor, 0.2 * factor])
        low, high = ends_of(left, label)[0]
        assert (low, high) == pytest.approx((1.0 * factor, 1.2 * factor))  # sd of two is 0.141, over root 2
    assert [text.get_text() for text in left.get_xticklabels()] == ["0.001", "0.01", "0.1"]
    cost, wall = line_of(right, "cost"), line_of(right, "wall clock")
    assert list(cost.get_ydata()) == [6.0, 2.5, 0.5]
    assert list(wall.get_ydata()) == [3.0, 1.25, 0.25]
    assert set(line_of(right, "baseline").get_ydata()) == {1.0}


def test_values_within_a_decade_have_an_even_axis_and_words_a_place_each():
    even = draw_sweep(made([run({RATE: r}, 0, 1.0 / r) for r in (1.0, 4.0, 10.0)])).axes[0]
    assert even.get_xscale() == "linear"
    words = draw_sweep(made([run({"predictor.name": n}, 0, v) for n, v in (("b", 2.0), ("a", 1.0))])).axes
    assert len(words) == 1, "without a baseline there is no speed-up to draw"
    line = line_of(words[0], "hybrid")
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [(0.0, 2.0), (1.0, 1.0)]
    assert [text.get_text() for text in words[0].get_xticklabels()] == ["b", "a"]
    assert line.get_linestyle() == "None", "nothing lies between two words"


def test_a_setting_of_the_engine_has_one_baseline_for_all_its_values():
    runs = [run({HORIZON: h}, 0, 1.0, 2.0, 2.0, "all-base/seed-0") for h in (3.0, 6.0)]
    axis = draw_sweep(made(runs, [run({}, 0, 1.7)])).axes[0]
    assert set(line_of(axis, "baseline").get_ydata()) == {1.7}


def test_each_combination_of_the_other_settings_is_a_line():
    runs = [run({RATE: r, HORIZON: h}, 0, r * h) for h in (3.0, 6.0) for r in (0.1, 0.02, 0.5)]
    assert swept_key(runs) == RATE
    found = series_of(runs, RATE)
    assert [series.label for series in found] == ["horizon 3", "horizon 6"]
    assert [list(series.groups) for series in found] == [[0.02, 0.1, 0.5]] * 2
    axis = draw_sweep(made(runs)).axes[0]
    line = line_of(axis, "hybrid, horizon 6")
    assert list(line.get_ydata()) == pytest.approx([0.12, 0.6, 3.0])


def test_divergence_and_a_missed_target_are_marked_on_the_edge_and_not_left_out():
    base = [run({RATE: r}, 0, 1.0) for r in (0.1, 5.0)]
    good = run({RATE: 0.1}, 0, 0.8, 0.0, 0.0, "0.1-base/seed-0")
    gone = run({RATE: 5.0}, 0, math.inf, 0.0, 0.0, "5.0-base/seed-0", error="the run diverged")
    left, right = draw_sweep(made([good, gone], base)).axes
    assert list(line_of(left, "hybrid").get_xdata()) == [0.1]
    assert list(line_of(left, "hybrid: a seed diverged").get_xdata()) == [5.0]
    assert list(line_of(right, "target: missed").get_xdata()) == [0.1, 5.0]
    result = made([good, gone], base)
    place = sweep_columns(result).index("speed-up, cost")
    assert {cells[place] for cells in sweep_cells(result)} == {"missed"}
    assert any("1 diverged" in cells for cells in sweep_cells(result))


def test_a_sweep_that_was_stopped_before_its_first_end_can_be_drawn(tmp_path):
    assert save_sweep_figure(made([], interrupted=True), tmp_path / "r.png").stat().st_size > 0
    assert "Interrupted" in save_sweep_page(made([], interrupted=True), tmp_path / "r.html").read_text()


def test_the_page_needs_no_other_file_and_holds_table_and_runs(rates, tmp_path):
    page = save_sweep_page(rates, tmp_path / "new" / "r.html").read_text()
    assert "data:image/png;base64," in page and not re.search(r'(src|href)="(?!data:)', page)
    for row in sweep_cells(rates):
        assert "".join(f"<td>{cell}</td>" for cell in row) in page
    for each in (*rates.runs, *rates.baselines):
        assert each.directory in page
    assert (
        "<script>"
        not in save_sweep_page(
            made([run({"predictor.name": "<script>"}, 0, 1.0)]), tmp_path / "e.html"
        ).read_text()
    )


def test_keys_that_end_alike_are_spelled_out():
    runs = [run({"a.size": a, "b.size": b}, 0, 1.0) for a in (1, 2) for b in (1, 2)]
    assert sweep_columns(made(runs))[:2] == ("a.size", "b.size")
    assert sweep_columns(made([run({RATE: 0.1}, 0, 1.0)]))[0] == "learning_rate"
