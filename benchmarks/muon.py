"""Muon (Jordan et al. 2024) beside AdamW, as PyTorch has them, behind one optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from hybridcore.protocols import OptimizerSpec

__all__ = ["MuonWithAdamW", "muon"]

RATE = 0.02
"""Its authors' learning rate."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the rest, behind one optimizer whose groups a schedule can scale.

    Args:
        parameters: What is trained; those with an attribute ``is_embedding`` are no matrices.
        rate: Learning rate of AdamW.
        weight_decay: Decoupled, of both.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], rate: float, weight_decay: float) -> None:
        held = list(parameters)
        matrices = [p for p in held if p.ndim == 2 and not getattr(p, "is_embedding", False)]
        inside = {id(p) for p in matrices}
        rest = [p for p in held if id(p) not in inside]
        groups: list[dict[str, Any]] = []
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            groups.append({"params": matrices, "lr": RATE})
            self._parts.append(torch.optim.Muon(matrices, lr=RATE, weight_decay=weight_decay))
        if rest:
            groups.append({"params": rest, "lr": rate})
            self._parts.append(torch.optim.AdamW(rest, lr=rate, weight_decay=weight_decay, fused=True))
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of both."""
        for group, part in zip(self.param_groups, self._parts, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()


def muon(parameters: list[torch.nn.Parameter], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Muon at its authors' rate, AdamW at an Adam setting's own, else at its default 1e-3."""
    rate = spec.learning_rate if spec.name in ("adam", "adamw") else 1e-3
    return MuonWithAdamW(parameters, rate, spec.weight_decay)
