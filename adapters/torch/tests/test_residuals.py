"""Derivatives of residuals along changes of the weights, and what a run gains by them."""

import attrs
import numpy as np
import pytest
import torch

from hybridcore.configfile import config_from_dict
from hybridcore.errors import ModelError
from hybridcore.records import read_run
from hybridcore.runner import run_task
from hybridcore.tasks.convection_pinn import ConvectionPinn
from hybridcore.tasks.poisson_pinn import PoissonPinn
from hybridcore_torch import TorchAdapter
from hybridcore_torch.framework import FRAMEWORK

SMALL = {"points": 24, "edge_points": 8, "width": 6, "depth": 2}


@pytest.mark.parametrize("cls", [ConvectionPinn, PoissonPinn])
def test_products_are_the_jacobian_by_reverse_mode(cls):
    problem = cls(cls.Config(**SMALL)).problem(seed=0)
    run = FRAMEWORK.build(problem, "cpu")
    adapter, batch = run.adapter, next(run.batches)
    assert "residuals" in adapter.capabilities
    generator = torch.Generator().manual_seed(0)
    directions = [(torch.randn(adapter.layout.total, generator=generator),) for _ in range(3)]
    before = adapter.read_params()
    residuals, products = adapter.linearise_residuals(batch, directions)
    assert np.square(residuals) == pytest.approx(adapter.probe_loss(batch), rel=1e-5)
    parameters = dict(adapter.model.named_parameters())
    rows = []
    for value in adapter._residual_fn(adapter.model, batch):
        gradients = torch.autograd.grad(
            value, list(parameters.values()), retain_graph=True, allow_unused=True
        )
        named = {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(parameters.items(), gradients, strict=True)
        }
        rows.append(torch.cat([named[p.name].reshape(-1) for p in adapter.layout.params]))
    jacobian = torch.stack(rows).double().numpy()
    expected = jacobian @ np.stack([d[0].double().numpy() for d in directions], axis=1)
    assert products == pytest.approx(expected, rel=1e-3, abs=1e-4 * np.abs(expected).max())
    assert all(torch.equal(a, b) for a, b in zip(before, adapter.read_params(), strict=True))
    assert all(p.grad is None for p in parameters.values())


def test_without_a_residual_function_there_is_no_capability():
    model = torch.nn.Linear(2, 1)
    adapter = TorchAdapter(
        model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, b: m(b).square()[:, 0]
    )
    assert "residuals" not in adapter.capabilities
    with pytest.raises(ModelError, match="residuals"):
        adapter.linearise_residuals(torch.ones(3, 2), [])


def test_f85_gauss_newton_jumps_lower_the_training_loss_of_a_pinn_and_are_booked(tmp_path):
    config = config_from_dict(
        {
            "run": {"steps": 200, "evaluate_every": 100},
            "task": {"name": "poisson-pinn", "learning_rate": 1e-2, **SMALL},
            "predictor": {"name": "gauss-newton"},
            "controller": {"name": "fixed", "fixed": {"full_steps": 10, "correct_steps": 10}},
            "history": {"window": 5},
            "probe": {"tentative": False},
            "verdict": {"confidence_z": 1e6, "guard_factor": 100.0},
            "budget": {"share": 1.0, "backoff_steps": 0},
        }
    )
    hybrid = run_task(config, out_dir=tmp_path / "hybrid")
    longer = attrs.evolve(config, run=attrs.evolve(config.run, steps=int(hybrid.summary["cost"])))
    run_task(longer, arm="baseline", out_dir=tmp_path / "plain")
    assert hybrid.summary["jumps"] >= 12
    # 1 + 2k passes with k from 3 to 6, a measurement and a probe for the verdict at least, each 1/3.
    assert hybrid.summary["cost"] >= 200 + hybrid.summary["jumps"] * (1 + 2 * 3 + 2) / 3
    ends = [
        np.median([step["loss"] for step in read_run(tmp_path / arm / "metrics.jsonl").steps[-30:]])
        for arm in ("hybrid", "plain")
    ]
    assert ends[0] < 0.9 * ends[1], "at equal cost"
