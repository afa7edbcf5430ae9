"""F57: each option of each built-in predictor changes what it proposes."""

from __future__ import annotations

import array_api_compat.numpy as xp
import attrs
import numpy as np
import pytest
from trajectory_lab import change, recursion, remember

from hybridcore.plugins import load_registry
from hybridcore.predictors.coordinates import COORDINATE_MODELS, LinearModel

NEED_RESIDUALS = {"gauss-newton.dimensions", "gauss-newton.damping", "gauss-newton.tries"}
"""Tried in test_gauss_newton.py."""

# Option: two values, and what else is set.
CASES = {
    "drift.anchor": ("iterate", "mean", {}),
    "drift.pairs": (1, 2, {}),
    "outer-momentum.mode": ("nesterov", "ema", {}),
    "outer-momentum.momentum": (0.9, 0.5, {"length": "own"}),
    "outer-momentum.length": ("asked", "own", {}),
    "outer-momentum.slow_step": (0.5, 0.8, {"mode": "lookahead"}),
    "average.windows": (3, 6, {"share": 1.0}),
    "average.share": (0.1, 0.5, {}),
    "average.step": (1.0, 0.5, {}),
    "spectral.windows": (4, 6, {}),
    "spectral.rank": (1, 3, {"tolerance": 1e-3}),
    "spectral.tolerance": (1e-3, 0.5, {}),
    "spectral.ridge": (0.0, 0.1, {}),
    "anderson.windows": (3, 6, {}),
    "anderson.ridge": (1e-4, 0.1, {}),
    "anderson.mixing": (0.0, 1.0, {}),
    "anderson.step": (1.0, 0.5, {}),
    "latent.model": ("linear", "straight", {}),
    "latent.windows": (3, 6, {}),
    "latent.rank": (1, 3, {}),
    "latent.order": (1, 2, {"ridge": 1e-6}),
    "latent.ridge": (1e-6, 0.5, {}),
    "subspace-newton.dimensions": (1, 3, {}),
    "subspace-newton.spread": (0.5, 1.0, {}),
    "subspace-newton.trust": (0.1, 2.0, {}),
    "subspace-newton.damping": (1e-3, 1.0, {}),
}


def proposal(name, options):
    cls = load_registry(block=()).get("predictor", name)
    predictor = cls(cls.Config(**options))
    path = recursion(42, np.repeat([0.9, 0.96, 0.99], 4))
    path += 0.0002 * np.random.default_rng(2).standard_normal(path.shape)
    history = remember(path, predictor)
    predictor.predict(history, 10.0, xp)
    if not hasattr(predictor, "predict_with"):
        return change(predictor.predict(history, 10.0, xp))
    curvature = np.linspace(1.0, 9.0, 12)
    return change(
        predictor.predict_with(
            history,
            10.0,
            xp,
            lambda d: float(np.sum(curvature * np.square(path[-1] + d[0]) + (path[-1] + d[0]) ** 4)),
        )
    )


@pytest.mark.parametrize("option", CASES)
def test_f57_the_option_changes_the_proposal(option, monkeypatch):
    monkeypatch.setitem(COORDINATE_MODELS, "straight", lambda order, ridge: LinearModel(order, 1e9))
    name, key = option.split(".")
    one, other, more = CASES[option]
    first = proposal(name, {**more, key: one})
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, proposal(name, {**more, key: one}))
    assert not np.allclose(first, proposal(name, {**more, key: other}), rtol=1e-3, atol=1e-7)


def test_f57_every_option_is_tried():
    predictors = load_registry(block=()).predictors
    builtin = {n: c for n, c in predictors.items() if c.__module__.startswith("hybridcore.")}
    options = {
        f"{name}.{field.name}"
        for name, cls in builtin.items()
        if hasattr(cls, "Config")
        for field in attrs.fields(cls.Config)
    }
    assert options - NEED_RESIDUALS == set(CASES)
