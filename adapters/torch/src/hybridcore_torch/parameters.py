"""Which parameters take part, what they are called, and in which group each one is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hybridcore.errors import ModelError
from hybridcore.layout import ParamGroup, ParamLayout
from hybridcore_torch.sharding import local

__all__ = ["collect", "plain_name", "unwrap"]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside `torch.compile` and data-parallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(name: str) -> str:
    """Parameter name without the marks of compiled submodules."""
    return name.replace("_orig_mod.", "")


def collect(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[ParamLayout, tuple[nn.Parameter, ...]]:
    """Trainable parameters that the optimizer holds, in layout order; tied ones once, frozen ones not.

    Args:
        model: The model, possibly wrapped.
        optimizer: Its optimizer.

    Returns:
        The layout and the parameters in the same order. Of sharded parameters, the layout has the shapes of
        what lies on this process.

    Raises:
        ModelError: Nothing is left to train, or a parameter cannot be represented in buckets.
    """
    base = unwrap(model)
    named = {plain_name(n): p for n, p in base.named_parameters()}
    if not named:
        raise ModelError(
            "the model has no parameters", where=type(base).__name__, fix="pass a module with weights"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    groups = _groups(base)
    kept = {n: p for n, p in named.items() if p.requires_grad and id(p) in held}
    if not kept:
        raise ModelError(
            "the optimizer trains no parameter of the model",
            where=type(optimizer).__name__,
            got=f"{len(held)} parameters, none of them a trainable one of the model",
            expected=f"some of the model's {len(named)} parameters with requires_grad",
            fix="build the optimizer from `model.parameters()` of this very model",
        )
    for name, param in kept.items():
        if not param.is_floating_point() or param.is_meta or isinstance(param, nn.UninitializedParameter):
            raise ModelError(
                "a parameter cannot be trained by prediction",
                where=name,
                got=f"{param.dtype} on {param.device}",
                expected="a real floating-point tensor with memory",
                fix="materialise lazy or meta parameters first; complex ones are not served",
            )
    layout = ParamLayout.plan(
        (n, tuple(local(p).shape), str(p.dtype).removeprefix("torch."), str(p.device), groups.get(id(p)))
        for n, p in kept.items()
    )
    return layout, tuple(kept[n] for n in layout.names)


def _groups(base: nn.Module) -> dict[int, ParamGroup]:
    """Group by parameter identity, where the module type or the leaf name tells it."""
    found: dict[int, ParamGroup] = {}
    for module in base.modules():
        for leaf, param in module.named_parameters(recurse=False):
            group = _group(module, leaf, param)
            # An embedding tied to an output matrix is an embedding wherever it is met first.
            if group is not None and (id(param) not in found or group is ParamGroup.EMBEDDING):
                found[id(param)] = group
    return found


def _group(module: Any, leaf: str, param: torch.Tensor) -> ParamGroup | None:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return ParamGroup.EMBEDDING
    if isinstance(module, _NORMS) or (type(module).__name__.endswith("Norm") and param.ndim < 2):
        return ParamGroup.NORM
    if param.ndim < 2 and "bias" in leaf:
        return ParamGroup.BIAS
    return None
