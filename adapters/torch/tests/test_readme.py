"""The README's two loops run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

README = Path(__file__).parents[1] / "README.md"


def scene():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.randn(8, 4), torch.randn(8, 2)) for _ in range(12)]
    return {
        "model": model,
        "optimizer": optimizer,
        "loss_fn": lambda model, batch: (model(batch[0]) - batch[1]).square().mean(1),
        "held_out_batches": data[:2],
        "loader": data[2:],
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5),
        "scaler": torch.amp.GradScaler("cpu", init_scale=2.0),
    }


def test_both_loops_run_as_printed():
    text = README.read_text(encoding="utf-8")
    diff, loop = (re.search(rf"```{kind}\n(.*?)```", text, re.S)[1] for kind in ("diff", "python"))
    names = scene()
    start = names["model"].weight.clone()
    exec("\n".join(line[1:] for line in diff.splitlines() if line[0] in "+ "), names)
    assert names["hybrid"].engine.counts.real_steps == 10
    assert names["optimizer"].param_groups[0]["lr"] == 0.025
    moved = names["model"].weight.clone()
    assert not torch.equal(moved, start)
    exec(loop, names)
    assert names["hybrid"].engine.counts.real_steps == 20
    assert not torch.equal(names["model"].weight, moved)
    names = scene()
    exec("\n".join(line[1:] for line in diff.splitlines() if line[0] in "- " and "hybrid" not in line), names)
    assert torch.equal(names["model"].weight, moved)
