"""Muon (Jordan et al. 2024) beside AdamW, as PyTorch has them, behind one optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from hybridcore.protocols import OptimizerSpec

__all__ = ["MuonWithAdamW", "muon"]


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the rest, behind one optimizer whose groups a schedule can scale.

    Args:
        parameters: What is trained.
        rate: Learning rate of both; Muon's updates are scaled to the size of AdamW's.
        weight_decay: Decoupled, of both.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], rate: float, weight_decay: float) -> None:
        held = list(parameters)
        parts = [[p for p in held if p.ndim == 2], [p for p in held if p.ndim != 2]]
        super().__init__([{"params": part} for part in parts if part], {"lr": rate})
        self._parts: list[torch.optim.Optimizer] = []
        for part in (part for part in parts if part):
            if part[0].ndim == 2:
                self._parts.append(
                    torch.optim.Muon(part, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
                )
            else:
                self._parts.append(torch.optim.AdamW(part, lr=rate, weight_decay=weight_decay, fused=True))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of both."""
        for group, part in zip(self.param_groups, self._parts, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()


def muon(parameters: list[torch.nn.Parameter], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Muon at an Adam recipe's own rate, else at its default 1e-3."""
    rate = spec.learning_rate if spec.name in ("adam", "adamw") else 1e-3
    return MuonWithAdamW(parameters, rate, spec.weight_decay)
