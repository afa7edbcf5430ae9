"""The framework object: ownership without import, building of problems, versions, and a whole run."""

from __future__ import annotations

import itertools
import subprocess
import sys

import equinox as eqx
import flax.linen
import flax.nnx
import jax
import numpy as np
import pytest

from hybridcore.cli import execute
from hybridcore.errors import TaskError
from hybridcore.frameworks import detect_framework
from hybridcore.protocols import Framework, OptimizerSpec, Problem
from hybridcore.records import read_run
from hybridcore_jax import LinenModel
from hybridcore_jax.framework import FRAMEWORK


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
    module = flax.linen.Dense(3)
    variables = module.init(jax.random.key(0), np.ones((1, 2)))
    assert isinstance(FRAMEWORK, Framework)
    linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    for model in (
        flax.nnx.Linear(1, 1, rngs=flax.nnx.Rngs(0)),
        module,
        linear,
        LinenModel(module, variables),
    ):
        assert FRAMEWORK.owns(model)
    assert not FRAMEWORK.owns(np.zeros(1))
    assert not FRAMEWORK.owns(eqx.nn.Linear)
    assert detect_framework(module) == detect_framework(linear) == "jax"
    assert FRAMEWORK.versions()["jax"] == jax.__version__
    assert FRAMEWORK.devices()[0] == "cpu"


def test_nothing_is_imported_before_it_is_needed():
    code = (
        "import sys, hybridcore_jax, hybridcore.testing\n"
        "from hybridcore_jax.framework import FRAMEWORK\n"
        "assert not FRAMEWORK.owns(object())\n"
        "assert not {'jax', 'optax', 'pytest'} & set(sys.modules), 'imported too early'\n"
        "from hybridcore_jax import JaxAdapter\n"
        "assert not {'flax', 'equinox', 'torch'} & set(sys.modules), 'imported without need'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_builds_a_run_with_the_problems_own_weights_and_data():
    given = problem()
    run = FRAMEWORK.build(given, "cpu")
    named = run.adapter.layout.unpack(run.adapter.read_params(), run.adapter.xp)
    assert set(named) == set(given.weights)
    for name, value in given.weights.items():
        np.testing.assert_array_equal(named[name], value)
    first, second = next(run.batches), next(run.batches)
    assert first is second  # a full batch is moved once
    before = run.evaluate()
    assert set(before) == {"loss", "accuracy"}
    rates = []
    for _ in range(5):
        run.adapter.train_step(next(run.batches))
        rates.append(run.adapter.learning_rate)
    np.testing.assert_allclose(rates, [0.01, 0.009, 0.008, 0.007, 0.006], rtol=1e-6)
    assert run.schedule_step is None
    assert run.evaluate() != before
    assert run.adapter.probe_loss(run.probes[0]).shape == (8,)


def test_evaluation_is_the_mean_over_all_examples():
    """Float64 softmax by hand; the two validation batches differ in size."""
    given = problem()
    x = np.concatenate([b[0] for b in given.validation]).astype(np.float64)
    y = np.concatenate([b[1] for b in given.validation])
    w = given.weights
    hidden = np.maximum(x @ w["layers.0.weight"].T + w["layers.0.bias"], 0.0)
    logits = hidden @ w["layers.1.weight"].T + w["layers.1.bias"]
    chosen = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    assert FRAMEWORK.build(given, "cpu").evaluate()["loss"] == pytest.approx(chosen.mean(), rel=1e-5)


def test_unknown_devices_are_refused():
    for name in ("abacus", "cpu:99", "cpu:x"):
        with pytest.raises(TaskError, match="device"):
            FRAMEWORK.build(problem(), name)


def test_noise_of_the_quadratic_is_that_of_the_numpy_adapter():
    from hybridcore.plugins import load_framework, load_registry

    cls = load_registry().get("task", "quadratic")
    runs = [
        load_framework(name).build(cls(cls.Config(size=10, noise=0.5)).problem(0), "cpu")
        for name in ("numpy", "jax")
    ]
    for _ in range(20):
        one, two = (run.adapter.train_step(next(run.batches)) for run in runs)
        assert two.loss == pytest.approx(one.loss, rel=1e-5)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)


@pytest.mark.parametrize("task", ["digits-mlp", "quadratic"])
def test_hybridcore_run_with_framework_jax(task, tmp_path, monkeypatch):
    """End to end: jumps are applied, the loss falls, and the record is that of any other framework."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "run.toml"
    config.write_text(
        f'[run]\nsteps = 150\nevaluate_every = 50\n[task]\nname = "{task}"\nlearning_rate = 0.01\n'
        '[predictor]\nname = "last-update"\n[controller]\nname = "fixed"\n[controller.fixed]\nhorizon = 4.0\n'
        "[phases]\nwarmup_steps = 20\n[budget]\nshare = 1.0\ngrace_steps = 1000.0\n"
    )
    assert execute(["run", str(config), "--framework", "jax", "--out", str(tmp_path / "out")]) == 0
    run = read_run(tmp_path / "out")
    assert len(run.jumps) == run.summary["jumps"] > 0
    assert "jax" in str(run.start)
    assert run.evaluations[-1].loss < run.evaluations[0].loss
