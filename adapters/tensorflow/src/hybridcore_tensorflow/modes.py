"""Batch statistics without dropout, fixed random numbers, and state that comes back, inside a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

__all__ = ["batch_statistics", "tracked_norms", "undisturbed"]


def tracked_norms(norms: Sequence[Any]) -> list[Any]:
    """BatchNormalization layers that learn their moving statistics (not frozen)."""
    return [layer for layer in norms if layer.trainable]


@contextmanager
def batch_statistics(norms: Sequence[Any], momentum: float | None = None) -> Iterator[None]:
    """Trace with BatchNormalization on the batch's own statistics, whatever mode the model is called in.

    Moving statistics belong to the weights that produced them; right after a predicted change they are
    stale, and a loss measured with them would blame the change for it. With the batch's own statistics
    the loss depends on weights and batch alone. Frozen layers go on using their moving statistics.

    Args:
        norms: The layers.
        momentum: Momentum of the moving statistics inside; 0.0 makes them the batch's own.
    """
    active = tracked_norms(norms)
    momenta = [layer.momentum for layer in active]

    def forced(layer: Any) -> Any:
        def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return type(layer).call(layer, inputs, **{**kwargs, "training": True})

        return call

    try:
        for layer in active:
            object.__setattr__(layer, "call", forced(layer))
            if momentum is not None:
                layer.momentum = momentum
        yield
    finally:
        for layer, former in zip(active, momenta, strict=True):
            layer.momentum = former
            object.__delattr__(layer, "call")


@contextmanager
def undisturbed(state: Sequence[tf.Variable], seeds: Sequence[tf.Variable]) -> Iterator[None]:
    """Trace with every random generator at the same state, and put all state back at the graph's end.

    Reading costs nothing: a tensor shares the variable's memory until somebody writes.

    Args:
        state: Variables that a forward pass may change.
        seeds: Those of them that are states of generators.
    """
    former = [variable.read_value() for variable in state]
    for seed in seeds:
        seed.assign(tf.zeros_like(seed))
    yield
    for variable, value in zip(state, former, strict=True):
        variable.assign(value)
