"""Paths whose continuation is known in closed form, and what a predictor makes of them."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np

from hybridcore.config import HistoryConfig
from hybridcore.layout import ParamLayout
from hybridcore.testing.trajectories import synthetic_history

RATES = np.repeat([0.9, 0.98], 6)
"""Two modes, six weights each."""


def recursion(steps, rates=RATES, seed=0, optimum=0.25):
    """Weights of ``w <- w* + rates (w - w*)``, shape (steps + 1, n), float64."""
    start = np.random.default_rng(seed).standard_normal(len(rates))
    return optimum + np.power(rates, np.arange(steps + 1)[:, None]) * start


def remember(path, predictor, *, window=4, windows=None):
    """History of a path, and the predictor told of each step."""
    layout = ParamLayout.plan([("w", (path.shape[1], 1), "float32", "cpu", None)])
    predictor.reset(layout, np.random.default_rng(0))
    config = HistoryConfig(window=window, windows=windows or max(3, getattr(predictor, "windows", 0)))
    rows = [row.astype(np.float32) for row in path]
    return synthetic_history(xp, layout, rows, config=config, observe=predictor.observe)


def change(prediction):
    """The proposed change as one float64 vector."""
    return np.concatenate(prediction.deltas).astype(np.float64) * prediction.scale


def moved(predictor, path, horizon=10.0, **settings):
    """What the predictor proposes at the end of a path."""
    return change(predictor.predict(remember(path, predictor, **settings), horizon, xp))


def window_means(path, window=4):
    """Means of the full windows of a path, oldest first; the start is no step."""
    count = (len(path) - 1) // window
    return path[1 : count * window + 1].reshape(count, window, -1).mean(axis=1)
