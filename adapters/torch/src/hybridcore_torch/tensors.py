"""Copies of nested state: tensors by value, containers by structure, the rest as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

__all__ = ["clone_all", "clone_tree", "tensor_nbytes", "tree_tensors"]


def clone_all(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Detached copies of tensors, by one multi-tensor operation on accelerators."""
    plain = [t.detach() for t in tensors]
    if not plain or plain[0].device.type == "cpu":
        return [t.clone() for t in plain]
    copies = [torch.empty_like(t) for t in plain]
    torch._foreach_copy_(copies, plain)
    return copies


def clone_tree(value: Any) -> Any:
    """Deep copy of tensors in dicts, lists and tuples; other leaves are shared."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: clone_tree(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clone_tree(item) for item in value]
    if type(value) is tuple:
        return tuple(clone_tree(item) for item in value)
    return value


def tree_tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors inside nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tree_tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tree_tensors(item)


def tensor_nbytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors' elements."""
    return sum(t.numel() * t.element_size() for t in tensors)
