"""Rivals of the prediction benchmark against closed forms on one-weight problems, and on a real task."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from hybridcore.clock import Stopwatch
from hybridcore.config import MetricsConfig
from hybridcore.configfile import config_from_dict
from hybridcore.events import EventBus
from hybridcore.protocols import TaskRun
from hybridcore.records import read_run

torch = pytest.importorskip("torch")
adapters = pytest.importorskip("hybridcore_torch")

FILE = Path(__file__).parents[1] / "benchmarks" / "rivals.py"


@pytest.fixture
def rivals(monkeypatch):
    spec = importlib.util.spec_from_file_location("rivals", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rivals", module)
    spec.loader.exec_module(module)
    return module


def loop(kind, rate=0.1, start=1.0, target=0.0, optimizer=None):
    """``kind`` on the loss (w - target)^2 / 2 of one weight, 64 equal examples per batch."""
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.tensor([start], dtype=torch.float32))
    made = optimizer([model.w]) if optimizer else torch.optim.SGD([model.w], lr=rate)
    adapter = adapters.TorchAdapter(
        model, made, lambda m, batch: 0.5 * (m.w - target).square().expand(len(batch[0]))
    )
    batch = (np.zeros(64),)
    task = TaskRun(adapter, itertools.repeat(batch), (batch,), lambda: {"loss": 0.0})
    stepper = kind(task, EventBus(), Stopwatch(), MetricsConfig())

    def run(steps):
        path = []
        for _ in range(steps):
            stepper.step(batch)
            path.append(model.w.item())
        return path

    return stepper, run, model


def test_fast_forward_goes_to_the_minimum_of_the_line(rivals):
    """The sixth update is u = -0.1 * 0.9^5; its multiples are added while the quadratic falls."""
    here, update = 0.9**6, -0.1 * 0.9**5
    best = round(here / -update)  # the multiple nearest to the minimum at zero
    for kind, repeats in ((rivals.FastForward, best + 1), (rivals.FastForwardUndo, best)):
        stepper, run, _ = loop(kind)
        path = run(6)
        assert path[4] == pytest.approx(0.9**5, rel=1e-5)
        assert path[5] == pytest.approx(here + repeats * update, abs=1e-6)
        assert stepper.summary()["predicted_steps"] == best
        # One loss before, one after each step, of 32 of the 64 examples each
        assert stepper.summary()["cost"] == pytest.approx(6 + (best + 2) * (1 / 3) * 32 / 64)


def test_fast_forward_stops_at_its_limit(rivals):
    """A tiny rate would repeat its update a thousand times; the cost ends that, and no step is undone."""
    stepper, run, _ = loop(rivals.FastForwardUndo, rate=1e-3)
    stepper.limit = 9.95
    path = run(12)
    first = 0.999**6
    repeats = stepper.summary()["predicted_steps"]
    # Six steps and one loss, then a sixth of a step for each repeat until the cost is over the limit.
    assert repeats == 23
    assert path[5] == pytest.approx(first - repeats * 1e-3 * 0.999**5, abs=1e-6)
    assert path[11] == pytest.approx(path[5] * 0.999**6, rel=1e-5)
    assert stepper.summary()["cost"] == pytest.approx(16.0, abs=0.2)


def test_lookahead_is_its_formula(rivals):
    stepper, run, model = loop(rivals.Lookahead)
    run(5)
    slow = 0.5 + 0.5 * 0.9**5
    assert model.w.item() == pytest.approx(slow, rel=1e-5)
    run(2)
    with stepper.as_used():
        assert model.w.item() == pytest.approx(slow, rel=1e-5)
    assert model.w.item() == pytest.approx(slow * 0.81, rel=1e-5)
    run(3)
    assert model.w.item() == pytest.approx(slow**2, rel=1e-5)


def test_ema_is_its_formula_and_leaves_training_alone(rivals):
    stepper, run, model = loop(rivals.Ema)
    path = run(30)
    assert path == pytest.approx([0.9**t for t in range(1, 31)], rel=1e-4)
    mean = 1.0
    for t, w in enumerate(path, 1):
        decay = min(0.98, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * w
    with stepper.as_used():
        assert model.w.item() == pytest.approx(mean, rel=1e-4)
    assert model.w.item() == path[-1]


def test_ema_nesterov_is_its_formula(rivals):
    _, run, _ = loop(rivals.EmaNesterov, rate=0.05)
    w, m, expected = 1.0, 0.0, []
    for _ in range(12):
        d = -0.05 * (w + 0.9 * m)
        m, w = 0.9 * m + d, w + d
        expected.append(w)
    assert run(12) == pytest.approx(expected, abs=1e-6)


def test_schedule_free_sgd_averages_its_fast_weights(rivals):
    """z <- z - rate * gradient(y), x the mean of all z, y = 0.1 z + 0.9 x (Defazio et al., algorithm 1)."""
    pytest.importorskip("schedulefree")
    from hybridcore.protocols import OptimizerSpec

    made = lambda params: rivals._schedule_free(params, OptimizerSpec("sgd", 0.3))  # noqa: E731
    stepper, run, model = loop(rivals.TrainEvalOptimizer, optimizer=made)
    x = z = y = 1.0
    for t in range(1, 9):
        z -= 0.3 * y
        x += (z - x) / t
        y = 0.1 * z + 0.9 * x
    run(8)
    assert model.w.item() == pytest.approx(y, rel=1e-4)
    with stepper.as_used():
        assert model.w.item() == pytest.approx(x, rel=1e-4)
    assert model.w.item() == pytest.approx(y, rel=1e-4)


def test_prodigy_finds_its_own_rate(rivals):
    """From a first rate of 1e-6 it reaches a minimum at distance 3 whatever rate the setting has."""
    pytest.importorskip("prodigyopt")
    from hybridcore.protocols import OptimizerSpec

    ends = []
    for rate in (1e-6, 1.0):
        made = lambda params, rate=rate: rivals._prodigy(params, OptimizerSpec("adam", rate))  # noqa: E731
        _, run, _ = loop(rivals.Loop, optimizer=made, start=3.0)
        ends.append(run(150)[-1])
    assert ends[0] == ends[1]
    assert abs(ends[0]) < 0.5


CONFIG = {
    "run": {"steps": 60, "evaluate_every": 30},
    "task": {"name": "digits-mlp", "width": 64, "optimizer": "sgd", "learning_rate": 0.5},
}


ARMS = ["fast-forward", "fast-forward-undo", "schedule-free", "prodigy", "lookahead", "ema", "ema-nesterov"]


@pytest.mark.parametrize("arm", ARMS)
def test_every_rival_optimises_a_real_task(rivals, arm, tmp_path, registry):
    pytest.importorskip({"schedule-free": "schedulefree", "prodigy": "prodigyopt"}.get(arm, "torch"))
    longer = {"prodigy": {"run": {"steps": 150, "evaluate_every": 75}}}.get(arm, {})
    config = config_from_dict({**CONFIG, **longer})
    rivals.run_rival(config, arm, tmp_path, registry)
    record = read_run(tmp_path / "metrics.jsonl")
    assert record.arm == arm
    assert record.summary["real_steps"] == config.run.steps
    assert record.final_loss < 0.95 * record.evaluations[0].loss
    assert record.summary["cost"] >= config.run.steps


def test_lbfgs_beats_adam_on_the_full_batch_at_equal_cost(rivals, tmp_path, registry):
    from hybridcore.runner import run_task

    small = {"points": 64, "edge_points": 32, "width": 12, "depth": 2}
    config = config_from_dict(
        {
            "run": {"steps": 240, "evaluate_every": 60},
            "task": {"name": "poisson-pinn", "optimizer": "adam", "learning_rate": 1e-2, **small},
        }
    )
    rival = rivals.run_rival(config, "lbfgs", tmp_path / "lbfgs", registry)
    plain = run_task(config, arm="baseline", out_dir=tmp_path / "adam", registry=registry)
    assert rival.summary["backward_passes"] == rival.summary["cost"] > rival.summary["real_steps"]
    assert rival.summary["cost"] < 1.3 * plain.summary["cost"]
    assert rival.final_loss < plain.final_loss
