"""Copies of nested state: tensors by value, containers by structure, the rest as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

__all__ = ["alike", "clone_all", "clone_tree", "copy_all", "rebuild", "tensor_nbytes", "tree_tensors"]


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether one can be copied into the other without loss, wherever they lie."""
    return a.shape == b.shape and a.dtype is b.dtype


def clone_all(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Detached copies of tensors, by one multi-tensor operation on accelerators."""
    plain = [t.detach() for t in tensors]
    if not plain or plain[0].device.type == "cpu":
        return [t.clone() for t in plain]
    copies = [torch.empty_like(t) for t in plain]
    copy_all(copies, plain)
    return copies


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy pairs in place, one multi-tensor operation per dtype and device: each takes the fast path.

    From one device to another, and from and to pinned memory, copies are queued in the device's stream.
    """
    kinds: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            if target.device != source.device:
                target.copy_(source, non_blocking=True)
                continue
            into, of = kinds.setdefault((target.dtype, target.device), ([], []))
            into.append(target)
            of.append(source)
        for into, of in kinds.values():
            torch._foreach_copy_(into, of)


def tree_tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors inside nested dicts, lists and tuples, in the order of `rebuild`."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tree_tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tree_tensors(item)


def rebuild(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """The same structure with the next of `tensors` in each tensor's place; other leaves are shared."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: rebuild(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [rebuild(item, tensors) for item in value]
    if isinstance(value, tuple):
        items = [rebuild(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def clone_tree(value: Any) -> Any:
    """Deep copy of tensors in dicts, lists and tuples."""
    return rebuild(value, iter(clone_all(list(tree_tensors(value)))))


def tensor_nbytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors' elements."""
    return sum(t.numel() * t.element_size() for t in tensors)
