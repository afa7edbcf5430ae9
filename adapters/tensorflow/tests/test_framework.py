"""The framework object: ownership without import, building of problems, and a run from the command line."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.cli.app import app
from hybridcore.errors import AdapterNotFoundError, TaskError
from hybridcore.frameworks import detect_framework
from hybridcore.plugins import load_framework, load_registry
from hybridcore.protocols import Framework, OptimizerSpec, PeakMemoryAdapter, Problem
from hybridcore.tasks.precision import in_float64
from hybridcore_tensorflow.framework import FRAMEWORK


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


def test_is_a_framework_that_owns_modules_and_keras_models():
    assert isinstance(FRAMEWORK, Framework)
    assert FRAMEWORK.owns(tf.Module())
    assert FRAMEWORK.owns(keras.layers.Dense(1))
    assert not FRAMEWORK.owns(np.zeros(1))
    assert not FRAMEWORK.owns(tf.Module)
    assert FRAMEWORK.versions() == {"tensorflow": tf.__version__, "keras": keras.__version__}
    assert FRAMEWORK.devices()[0] == "cpu"
    assert detect_framework(keras.Sequential()) == "tensorflow"
    assert detect_framework(tf.Module()) == "tensorflow"


def test_nothing_is_imported_before_it_is_needed():
    code = (
        "import sys, hybridcore_tensorflow\n"
        "from hybridcore_tensorflow.framework import FRAMEWORK\n"
        "assert not FRAMEWORK.owns(object())\n"
        "assert FRAMEWORK.versions()['keras']\n"
        "assert not {'torch', 'tensorflow', 'keras'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_tensorflow_names_the_command(monkeypatch):
    monkeypatch.setattr("hybridcore_tensorflow.installed.find_spec", lambda name: None)
    with pytest.raises(AdapterNotFoundError, match=r"pip install 'hybridcore-tensorflow\[cpu\]'"):
        FRAMEWORK.build(problem(), "cpu")
    import hybridcore_tensorflow

    with pytest.raises(AdapterNotFoundError, match=r"\[gpu\]"):
        _ = hybridcore_tensorflow.hybridize
    assert importlib.util.find_spec("tensorflow")


def test_builds_a_run_with_the_problems_own_weights_and_data():
    given = problem()
    run = FRAMEWORK.build(given, "cpu")
    named = run.adapter.layout.unpack(run.adapter.read_params(), run.adapter.xp)
    assert set(named) == set(given.weights)
    for name, value in given.weights.items():
        np.testing.assert_array_equal(named[name], value)
    first, second = next(run.batches), next(run.batches)
    assert first is second  # a full batch is converted once
    before = run.evaluate()
    rates = []
    for _ in range(5):
        rates.append(run.adapter.learning_rate)
        run.adapter.train_step(next(run.batches))
    np.testing.assert_allclose(rates, [0.01, 0.009, 0.008, 0.007, 0.006], rtol=1e-6)
    assert run.schedule_step is None
    assert run.evaluate() != before
    x, y = (np.concatenate(parts) for parts in zip(*given.validation, strict=True))
    w = run.adapter.layout.unpack(run.adapter.read_params(), np)
    hidden = np.maximum(x.astype(np.float64) @ w["layers.0.weight"].T + w["layers.0.bias"], 0.0)
    logits = hidden @ w["layers.1.weight"].T + w["layers.1.bias"]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    accuracy = float((logits.argmax(1) == y).mean())
    assert run.evaluate() == pytest.approx({"loss": losses.mean(), "accuracy": accuracy}, rel=1e-5)


def test_unknown_devices_and_models_are_refused():
    with pytest.raises(TaskError, match="device"):
        FRAMEWORK.build(problem(), "abacus")
    with pytest.raises(TaskError, match="does not know the model"):
        FRAMEWORK.build(problem(model="perceiver"), "cpu")
    with pytest.raises(TaskError, match="do not fit"):
        FRAMEWORK.build(problem(weights={}), "cpu")


@pytest.mark.parametrize("task", ["quadratic", "logistic"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_analytic_tasks_follow_the_numpy_adapter_in_float64(task, optimizer):
    """Their gradients are written out by hand there; noise is drawn in the same order."""
    cls = load_registry().get("task", task)
    options = {"size": 10, "noise": 0.5} if task == "quadratic" else {}
    made = cls.Config(optimizer=optimizer, **options)
    problems = [in_float64(cls(made).problem(0)) for _ in range(2)]
    names = ("numpy", "tensorflow")
    runs = [load_framework(n).build(p, "cpu") for n, p in zip(names, problems, strict=True)]
    for _ in range(10):
        one, two = (run.adapter.train_step(next(run.batches)) for run in runs)
        assert two.loss == pytest.approx(one.loss, rel=1e-11)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    one, two = (run.evaluate()["loss"] for run in runs)
    assert two == pytest.approx(one, rel=1e-11)


def test_run_from_the_command_line(tmp_path):
    """A built-in task, from a configuration file to a summary, with jumps."""
    file = tmp_path / "run.toml"
    file.write_text(
        "[run]\nsteps = 120\nevaluate_every = 60\n"
        '[task]\nname = "digits-mlp"\nwidth = 16\nlearning_rate = 0.02\n'
        "[budget]\nshare = 1.0\ngrace_steps = 100.0\n"
    )
    out = tmp_path / "out"
    command = ["run", str(file), "--framework", "tensorflow", "--set", f"run.directory={out}"]
    app(command, result_action="return_value")
    (summary,) = out.rglob("summary.json")
    found = json.loads(summary.read_text())
    assert found["real_steps"] == 120
    assert found["jumps"] > 0
    lines = [json.loads(line) for line in summary.with_name("metrics.jsonl").read_text().splitlines()]
    assert lines[0]["framework"] == "tensorflow"
    assert lines[0]["versions"]["tensorflow"] == tf.__version__
    losses = [line["loss"] for line in lines if line["event"] == "evaluation"]
    assert losses[-1] < 0.8 * losses[0]


def test_the_peak_of_the_fullest_gpu_counts_from_the_reset(monkeypatch):
    """F90, with GPUs that are not there; on the CPU nothing is said."""
    adapter = FRAMEWORK.build(problem(), "cpu").adapter
    adapter.reset_peak()
    assert isinstance(adapter, PeakMemoryAdapter) and adapter.peak_bytes() is None
    used, most = {"GPU:0": 70, "GPU:1": 60}, {"GPU:0": 900, "GPU:1": 900}
    experimental = tf.config.experimental
    monkeypatch.setattr(experimental, "reset_memory_stats", lambda name: most.update({name: used[name]}))
    monkeypatch.setattr(experimental, "get_memory_info", lambda name: {"current": 0, "peak": most[name]})
    adapter._devices = ("gpu:0", "gpu:1")
    adapter.reset_peak()
    assert adapter.peak_bytes() == 70
    most["GPU:1"] = 300
    assert adapter.peak_bytes() == 300
