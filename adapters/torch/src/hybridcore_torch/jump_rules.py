"""What a predicted change does to the optimizer's own state (F59)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hybridcore_torch.sharding import local

__all__ = ["drop_curvature_pairs", "has_velocity", "moment_statistics", "scale_velocity"]

AddUp = Callable[[list[float]], list[float]]
"""Sums over the whole model of sums over what lies on this process."""

_PAIRS = ("d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss", "al")


def _velocities(optimizer: torch.optim.Optimizer) -> list[tuple[torch.Tensor, torch.Tensor, bool]]:
    """``(parameter, velocity, maximize)`` of heavy-ball methods; Muon's averaged gradient is not one."""
    found = []
    for group in optimizer.param_groups:
        if "ns_steps" in group:
            continue
        for param in group["params"]:
            velocity = optimizer.state[param].get("momentum_buffer") if param in optimizer.state else None
            if isinstance(velocity, torch.Tensor):
                found.append((param, velocity, bool(group.get("maximize", False))))
    return found


def has_velocity(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer keeps a heavy-ball velocity now."""
    return bool(_velocities(optimizer))


@torch.no_grad()
def scale_velocity(optimizer: torch.optim.Optimizer, add_up: AddUp | None = None) -> None:
    """Scale the velocity m by ``max(0, cos(m, g))`` with the fresh gradient g, over all parameters.

    The velocity was gathered where the weights were before the jump. As far as it still agrees with the
    gradient at the new place it is worth keeping; a velocity that points uphill is dropped. Nothing is
    copied to the host, unless the parameters are sharded.

    Args:
        optimizer: The optimizer.
        add_up: Sums over all shards of sums over this process's, where the parameters are sharded.
    """
    rows = [(local(p.grad), local(m), up) for p, m, up in _velocities(optimizer) if p.grad is not None]
    if not rows:
        return
    device = rows[0][1].device
    velocities = [m for _, m, _ in rows]
    gradients = [-g.to(m.dtype) if up else g.to(m.dtype) for g, m, up in rows]

    wide = torch.float32
    for velocity in velocities:
        wide = torch.promote_types(wide, velocity.dtype)

    def total(tensors: Any) -> torch.Tensor:
        return torch.stack([t.sum(dtype=wide).to(device) for t in tensors]).sum()

    pairs = ((velocities, gradients), (velocities, velocities), (gradients, gradients))
    dot, of_m, of_g = (total(torch._foreach_mul(a, b)) for a, b in pairs)
    if add_up is not None:
        dot, of_m, of_g = dot.new_tensor(add_up([dot.item(), of_m.item(), of_g.item()]))
    squares = of_m * of_g
    cosine = (dot / squares.sqrt().clamp_min(torch.finfo(torch.float32).tiny)).clamp(0.0, 1.0)
    if all(m.device == device for m in velocities):
        torch._foreach_mul_(velocities, cosine)
    else:
        torch._foreach_mul_(velocities, float(cosine))


def drop_curvature_pairs(optimizer: torch.optim.Optimizer) -> None:
    """Make L-BFGS start afresh: its pairs describe the curvature along a path that was left."""
    for state in optimizer.state.values():
        if "prev_flat_grad" in state and "n_iter" in state:
            for key in _PAIRS:
                state.pop(key, None)
            state["n_iter"] = 0


@torch.no_grad()
def moment_statistics(optimizer: torch.optim.Optimizer, add_up: AddUp | None = None) -> dict[str, float]:
    """Mean and standard deviation of first and second moments; zeros where there are none yet."""
    sums: AddUp = add_up if add_up is not None else list
    result = {}
    for letter, keys in (
        ("m", ("exp_avg", "momentum_buffer")),
        ("v", ("exp_avg_sq", "square_avg", "sum")),
    ):
        tensors = [
            local(state[key])
            for state in optimizer.state.values()
            for key in keys
            if isinstance(state.get(key), torch.Tensor)
        ]
        mean = deviation = 0.0
        if tensors:
            # Two passes: the variance of tiny second moments would drown in the difference of squares.
            count, total = sums([float(sum(t.numel() for t in tensors)), _total(tensors)])
            mean = total / count if count else 0.0
            (spread,) = sums([_total([(t - mean).square_() for t in tensors])])
            deviation = (spread / count) ** 0.5 if count else 0.0
        result[f"{letter}_mean"], result[f"{letter}_std"] = mean, deviation
    return result


def _total(tensors: list[torch.Tensor]) -> float:
    return float(sum(torch.stack([t.sum(dtype=torch.float64).cpu() for t in tensors]).tolist()))
