"""The framework object: ownership without import, building of problems, versions and devices."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from hybridcore.errors import TaskError
from hybridcore.protocols import Framework, OptimizerSpec, Problem
from hybridcore_torch.framework import FRAMEWORK


def problem(**changes):
    rng = np.random.default_rng(0)
    widths = (4, 6, 3)
    weights = {}
    for index, (a, b) in enumerate(itertools.pairwise(widths)):
        weights[f"layers.{index}.weight"] = rng.standard_normal((b, a)).astype(np.float32)
        weights[f"layers.{index}.bias"] = np.zeros(b, np.float32)

    def batch(n):
        return rng.standard_normal((n, 4)).astype(np.float32), rng.integers(0, 3, n)

    fields = {
        "name": "tiny",
        "model": "mlp",
        "shape": {"widths": widths},
        "weights": weights,
        "optimizer": OptimizerSpec(name="adamw", learning_rate=0.01, schedule="linear", total_steps=10),
        "batches": lambda: itertools.repeat(batch(8)),
        "probes": (batch(8),),
        "validation": (batch(8), batch(5)),
        "metrics": ("loss", "accuracy"),
    }
    return Problem(**{**fields, **changes})


def test_is_a_framework_that_owns_modules_only():
    assert isinstance(FRAMEWORK, Framework)
    assert FRAMEWORK.owns(torch.nn.Linear(1, 1))
    assert FRAMEWORK.owns(torch.compile(torch.nn.Linear(1, 1), backend="eager"))
    assert not FRAMEWORK.owns(np.zeros(1))
    assert not FRAMEWORK.owns(torch.nn.Linear)
    assert FRAMEWORK.versions()["torch"] == torch.__version__
    assert FRAMEWORK.devices()[0] == "cpu"


def test_nothing_is_imported_before_it_is_needed():
    code = (
        "import sys, hybridcore_torch, hybridcore.testing\n"
        "from hybridcore_torch.framework import FRAMEWORK\n"
        "assert not FRAMEWORK.owns(object())\n"
        "assert not {'torch', 'pytest'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_builds_a_run_with_the_problems_own_weights_and_data():
    given = problem()
    run = FRAMEWORK.build(given, "cpu")
    named = run.adapter.layout.unpack(run.adapter.read_params(), run.adapter.xp)
    assert set(named) == set(given.weights)
    for name, value in given.weights.items():
        np.testing.assert_array_equal(named[name].numpy(), value)
    first, second = next(run.batches), next(run.batches)
    assert all(isinstance(t, torch.Tensor) for t in first)
    assert first is second  # a full batch is converted once
    before = run.evaluate()
    assert set(before) == {"loss", "accuracy"}
    rates = []
    for _ in range(5):
        rates.append(run.adapter.learning_rate)
        run.adapter.train_step(next(run.batches))
        run.schedule_step()
    np.testing.assert_allclose(rates, [0.01, 0.009, 0.008, 0.007, 0.006], rtol=1e-6)
    assert run.evaluate() != before
    assert run.adapter.model.training
    assert run.adapter.probe_loss(run.probes[0]).shape == (8,)


def test_evaluation_is_the_mean_over_all_examples():
    """Float64 softmax by hand; the two validation batches differ in size."""
    given = problem()
    x = np.concatenate([b[0] for b in given.validation]).astype(np.float64)
    y = np.concatenate([b[1] for b in given.validation])
    w = given.weights
    run = FRAMEWORK.build(given, "cpu")
    with torch.no_grad():
        hidden = np.maximum(x @ w["layers.0.weight"].T + w["layers.0.bias"], 0.0)
    logits = hidden @ w["layers.1.weight"].T + w["layers.1.bias"]
    chosen = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    assert run.evaluate()["loss"] == pytest.approx(chosen.mean(), rel=1e-5)


def test_unknown_devices_are_refused():
    with pytest.raises(TaskError, match="device"):
        FRAMEWORK.build(problem(), "abacus")
