"""What processes send each other in real steps and in predicted jumps, by PyTorch's own profiler (F71)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hybridcore_torch import Hybrid

__all__ = ["traffic"]

_SENT = re.compile(r"(?:gloo|nccl):\w*(all_?reduce|all_?gather|reduce_?scatter|broadcast)")
_CALLED = re.compile(r"c10d::_?(allreduce|allgather|reduce_scatter|broadcast)")
_GRADIENTS = ("allreduce", "reducescatter")
"""Collectives that carry gradients; the engine's own gather, and so do FSDP2's whole parameters."""


def traffic(
    hybrid: Hybrid, step: Callable[[int], object], first: int, jumps: int, most: int
) -> dict[str, Any]:
    """Collectives, and numbers that this process sent, inside and outside of predictions.

    A prediction is all that happens between two real steps in a Predict phase: proposal, snapshot, probes and
    the change of the weights, which is also counted alone.

    Args:
        hybrid: A run in which jumps are due.
        step: Makes the real step of this number, jumps included.
        first: Number of the first one.
        jumps: Real steps are made until there were so many jumps,
        most: and at most so many.
    """
    engine, adapter = hybrid.engine, hybrid.adapter
    places: list[tuple[Any, str, Callable[..., Any], str]] = [
        (engine, "_predict", engine._predict, "a prediction"),
        (adapter, "apply_delta", adapter.apply_delta, "a change of weights"),
        (adapter, "train_step", adapter.train_step, "a real step"),
    ]
    for owner, name, function, words in places:
        setattr(owner, name, _named(function, words))
    try:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            wanted = engine.counts.jumps + jumps
            for number in range(first, first + most):
                step(number)
                if engine.counts.jumps >= wanted:
                    break
            if torch.cuda.is_available():
                torch.cuda.synchronize()
    finally:
        for owner, name, _, _ in places:
            delattr(owner, name)
    events = list(profiler.events() or ())
    return {words.partition(" ")[2]: _inside(events, words) for *_, words in places}


def _named(function: Callable[..., Any], words: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(words):
            return function(*args, **kwargs)

    return call


def _inside(events: list[Any], words: str) -> dict[str, Any]:
    """Collectives that were begun, and numbers that were sent, in the spans of that name."""
    spans = list(dict.fromkeys((e.time_range.start, e.time_range.end) for e in events if e.name == words))
    inside = [e for e in events if any(a <= e.time_range.start <= b for a, b in spans)]
    found: dict[str, Any] = {"times": len(spans)}
    for what in ("gradient", "other"):
        found[f"{what} collectives"] = sum(_kind(_CALLED, e.name) == what for e in inside)
        sent = (shape for e in inside if _kind(_SENT, e.name) == what for shape in e.input_shapes or ())
        found[f"{what} numbers"] = sum(torch.Size(shape).numel() for shape in sent if shape)
    return found


def _kind(pattern: re.Pattern[str], name: str) -> str | None:
    match = pattern.match(name)
    if match is None:
        return None
    return "gradient" if match[1].replace("_", "") in _GRADIENTS else "other"
