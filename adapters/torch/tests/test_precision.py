"""F58, F59, F72: float64 in PyTorch, and the analytic tasks beside the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hybridcore.configfile import config_from_dict
from hybridcore.parity import parity
from hybridcore.plugins import load_registry
from hybridcore.records import read_run
from hybridcore.runner import run_task
from hybridcore.tasks.building import build_task
from hybridcore.tasks.precision import in_float64
from hybridcore_torch.models import build_model

REGISTRY = load_registry()

SMALL = {
    "digits-mlp": {},
    "mnist-cnn": {"filters": 4},
    "stdlib-gpt": {"depth": 1, "width": 16, "heads": 2, "max_bytes": 500_000},
    "poisson-pinn": {"points": 64, "edge_points": 16},
    "convection-pinn": {"points": 64, "edge_points": 16},
    "quadratic": {},
    "logistic": {},
}


def build(framework, dtype, name, **options):
    run = {"framework": framework, "dtype": dtype}
    return build_task(config_from_dict({"run": run, "task": {"name": name, **options}}), REGISTRY)


@pytest.mark.parametrize("name", SMALL)
def test_f58_models_and_all_their_state_are_float64(name):
    """Every floating-point tensor, and a loss that float32 rounds: both agree to float32's last digits."""
    cls = REGISTRY.get("task", name)
    problem = cls(cls.Config(**SMALL[name])).problem(0)
    narrow, wide = build_model(problem), build_model(in_float64(problem))
    tensors = [*wide.model.parameters(), *wide.model.buffers()]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}
    one = narrow.loss_fn(narrow.model, next(problem.batches()))
    two = wide.loss_fn(wide.model, next(in_float64(problem).batches()))
    assert two.dtype == torch.float64
    np.testing.assert_allclose(one.detach().numpy(), two.detach().numpy(), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("name", ["quadratic", "logistic"])
def test_f59_analytic_tasks_train_like_the_numpy_reference(name, optimizer, dtype, tolerance):
    """The reference differentiates by hand, PyTorch by autograd."""
    runs = [build(framework, dtype, name, optimizer=optimizer) for framework in ("numpy", "torch")]
    assert runs[1].adapter.layout.bucket_dtype == dtype
    for _ in range(100):
        one, two = (run.adapter.train_step(next(run.batches)) for run in runs)
        assert two.loss == pytest.approx(one.loss, rel=tolerance)
    assert runs[1].evaluate()["loss"] == pytest.approx(runs[0].evaluate()["loss"], rel=tolerance)
    for a, b in zip(*([run.adapter.probe_loss(run.probes[0]) for run in runs]), strict=True):
        assert b == pytest.approx(a, rel=10 * tolerance)


def test_f59_gradient_noise_is_the_reference_s():
    runs = [build(f, "float64", "quadratic", noise=0.5) for f in ("numpy", "torch")]
    for _ in range(30):
        one, two = (run.adapter.train_step(next(run.batches)) for run in runs)
        assert two.loss == pytest.approx(one.loss, rel=1e-12)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-12)


JUMPS = {
    "phases": {"warmup_steps": 20, "full_steps": 15},
    "history": {"window": 5},
    "predictor": {"name": "drift"},
    "controller": {"name": "fixed", "fixed": {"horizon": 12.0}},
    "budget": {"share": 1.0, "grace_steps": 10000.0},
}


@pytest.mark.parametrize(
    "name, optimizer", [("quadratic", "sgd"), ("quadratic", "momentum"), ("logistic", "adam")]
)
def test_f72_whole_runs_equal_the_numpy_reference_in_float64(tmp_path, name, optimizer):
    """Histories, jumps, the momentum rule and verdicts: one float32 array among them would show as 1e-8."""
    records = []
    for framework in ("numpy", "torch"):
        run = {"framework": framework, "dtype": "float64", "steps": 150, "evaluate_every": 25}
        config = config_from_dict({"run": run, "task": {"name": name, "optimizer": optimizer}, **JUMPS})
        run_task(config, out_dir=tmp_path / framework)
        records.append(read_run(tmp_path / framework))
    assert records[1].jumps and records[1].verdicts
    assert parity(records[1], records[0]).holds(1e-12), parity(records[1], records[0])
