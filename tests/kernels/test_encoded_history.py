"""F65: window means kept in fewer bytes: bounds, memory, and runs that still learn."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest

from hybridcore.config import HistoryConfig
from hybridcore.history import History
from hybridcore.layout import ParamLayout
from hybridcore.reference import quadratic

NEEDS = {"window-means"}


def filled(dtype, steps=12):
    adapter = quadratic(seed=0)
    history = History(adapter.layout, adapter.xp, HistoryConfig(window=4, windows=3, dtype=dtype), NEEDS)
    for _ in range(steps):
        history.before_step(adapter)
        adapter.train_step(None)
        history.after_step(adapter)
    return history


@pytest.mark.parametrize("dtype, bound", [("bfloat16", 2.0**-8), ("int8", 1.001 / 127)])
def test_f65_means_are_within_the_bound(dtype, bound):
    exact, coarse = filled("float32"), filled(dtype)
    assert len(coarse.window_means) == len(exact.window_means) == 3
    for right, mine in zip(exact.window_means, coarse.window_means, strict=True):
        for a, b in zip(right, mine, strict=True):
            scale = np.abs(a) if dtype == "bfloat16" else np.abs(a).max()
            assert b.dtype == np.float64 and (np.abs(b - a) <= bound * scale).all() and (b != a).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_f65_displacement_and_slices_decode(dtype):
    history = filled(dtype)
    newest, before = history.window_means[-1], history.window_means[-2]
    for d, a, b in zip(history.displacement(), newest, before, strict=True):
        np.testing.assert_array_equal(d, a - b)
    assert len(history.window_means[-2:]) == 2
    mean, age = history.latest_mean()
    assert age == 1.5 and np.array_equal(mean[0], newest[0])


def test_f65_memory_is_that_of_the_encoding():
    layout = ParamLayout.plan([("w", (2560,), "float32", "cpu", None)])

    def per_window(dtype):
        plans = [
            History(layout, xp, HistoryConfig(windows=w, dtype=dtype), NEEDS).planned_bytes() for w in (3, 4)
        ]
        return plans[1] - plans[0]

    assert per_window("float32") == 4 * 2560
    assert per_window("bfloat16") == 2 * 2560
    assert per_window("int8") == 2560 + 4 * 10
    layout = ParamLayout.plan([("w", (2560,), "float64", "cpu", None)])
    assert per_window("float32") == 8 * 2560
    assert per_window("bfloat16") == 2 * 2560


def test_f65_a_budget_holds_more_windows_when_they_are_small():
    layout = ParamLayout.plan([("w", (262_144,), "float32", "cpu", None)])
    kept = {
        dtype: History(
            layout, xp, HistoryConfig(windows=40, dtype=dtype, memory_budget_mib=8.0), NEEDS
        ).windows
        for dtype in ("float32", "bfloat16", "int8")
    }
    assert kept["float32"] < kept["bfloat16"] < kept["int8"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_f65_bytes_in_use_stay_below_the_plan(dtype):
    history = filled(dtype)
    assert 0 < history.bytes_in_use() <= history.planned_bytes()
