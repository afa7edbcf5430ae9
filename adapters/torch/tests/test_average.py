"""The averaged read-out on a model with BatchNorm."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hybridcore.config import AverageConfig, HybridConfig, PredictorConfig
from hybridcore.engine import Engine
from hybridcore_torch import TorchAdapter


def test_f86_the_mean_gets_statistics_of_its_own_and_all_comes_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    adapter = TorchAdapter(model, optimizer, lambda m, b: (m(b[0]) - b[1]).square().mean(1))
    config = HybridConfig(
        average=AverageConfig(enabled=True, every=1, share=1.0, max_memory=1e6),
        predictor=PredictorConfig(name="none"),
    )
    batches = [(torch.randn(16, 5), torch.randn(16, 2)) for _ in range(14)]
    engine = Engine.from_config(adapter, config, probes=batches[:2])
    path = []
    for batch in batches[2:]:
        engine.step(batch)
        path.append([p.detach().clone() for p in model.parameters()])

    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    means = [torch.stack(values).mean(0) for values in zip(*path, strict=True)]
    with engine.averaged():
        for parameter, mean in zip(model.parameters(), means, strict=True):
            torch.testing.assert_close(parameter.detach(), mean)
        hidden = [batch[0] @ means[0].T + means[1] for batch in batches[:2]]
        torch.testing.assert_close(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
        torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    after = (model.state_dict(), optimizer.state_dict())
    for name, tensor in after[0].items():
        assert torch.equal(tensor, before[0][name]), name
    for index, state in after[1]["state"].items():
        assert torch.equal(state["momentum_buffer"], before[1]["state"][index]["momentum_buffer"])

    engine.adopt_average()
    for parameter, mean in zip(model.parameters(), means, strict=True):
        torch.testing.assert_close(parameter.detach(), mean)
