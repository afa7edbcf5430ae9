"""Recorded runs of the NumPy adapter, synthetic losses, and models driven over them as an engine would."""

from __future__ import annotations

import functools

import array_api_compat.numpy as xp
import numpy as np
from engine_lab import bowl, clouds

from hybridcore.protocols import Action, OptimizerSpec, Phase, StepOutcome, StepRecord
from hybridcore.state import Statistics

REAL = Action(Phase.FULL, 1, "")
PREDICTORS = ("drift", "last-update")


@functools.cache
def recorded(kind, steps=400, seed=0):
    """Losses, and the features after each step, of a real run: softmax regression or a noisy bowl."""
    if kind == "clouds":
        adapter, batches, _ = clouds(seed, optimizer=OptimizerSpec("adam", 0.01))
    else:
        adapter, batches = bowl(seed, noise=0.3, optimizer=OptimizerSpec("momentum", 0.01)), iter(int, 1)
    results = [(adapter.train_step(next(batches)), adapter.moments()) for _ in range(steps)]
    losses = np.array([result.loss for result, _ in results])
    return losses, featured(losses, [r.grad_norm for r, _ in results], [m for _, m in results])


def featured(losses, norms=None, moments=None):
    """Features after each step of a list of losses, shape (steps, features)."""
    statistics, rows = Statistics(), []
    for t, loss in enumerate(losses):
        norm = 1.0 if norms is None else norms[t]
        statistics.observe(StepRecord(t + 1, Phase.FULL, float(loss), norm, 0.1, 0.01))
        rows.append(
            statistics.features(
                phase=Phase.FULL,
                phase_progress=t % 10 / 10.0,
                progress=t / len(losses),
                straightness=0.5,
                moments={} if moments is None else moments[t],
            )
        )
    return np.array(rows)


def exponential(steps=300, memory=100.0, floor=0.2, noise=0.0, seed=0):
    """``floor + 2 exp(-t / memory)``, with noise in proportion."""
    clean = floor + 2.0 * np.exp(-np.arange(steps) / memory)
    return clean * (1.0 + noise * np.random.default_rng(seed).standard_normal(steps))


def fresh(model, seed=0, namespace=xp):
    """The model, reset."""
    model.reset(PREDICTORS, np.random.default_rng(seed), namespace, 50 << 20)
    return model


def drive(model, losses, features, *, every=10, updates=2, horizon=None, begin=0):
    """Feed a run step by step, train at every tenth step, and forecast right after training.

    Returns:
        Pairs of the step t and the rollout made with the features after it; entry j - 1 of the rollout is
        about ``losses[t + j]``.
    """
    forecasts = []
    for t in range(begin, len(losses)):
        if t:
            model.observe(features[t - 1], REAL, StepOutcome(float(losses[t]), 0.01))
        if t % every == 0 and t:
            model.train(updates)
            if horizon is not None and t + horizon < len(losses):
                forecasts.append((t, model.rollout(features[t], REAL, horizon)))
    return forecasts


def truth(losses, forecasts):
    """The losses that each forecast is about, shape (forecasts, horizon)."""
    horizon = len(forecasts[0][1].mean)
    return np.array([losses[t + 1 : t + 1 + horizon] for t, _ in forecasts])


def covered(losses, forecasts, coverage=0.9):
    """Share of losses inside their intervals."""
    low, high = (np.array(ends) for ends in zip(*(f.interval(coverage) for _, f in forecasts), strict=True))
    actual = truth(losses, forecasts)
    return float(np.mean((actual >= low) & (actual <= high)))
