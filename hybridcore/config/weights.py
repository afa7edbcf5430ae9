"""Tables of what is remembered of the weights, where, and of what predictions may do to them."""

from __future__ import annotations

import attrs

from hybridcore.config.validators import between, choice

__all__ = ["AverageConfig", "GroupsConfig", "HistoryConfig", "MemoryConfig"]


@attrs.frozen(kw_only=True)
class HistoryConfig:
    """Table ``[history]``: what is remembered of the weights.

    Attributes:
        window: Real steps averaged into one window mean.
        windows: Window means kept.
        dtype: How window means are kept: ``"float32"``, whole (and in float64 where all weights are); or
            ``"bfloat16"``, half the memory, each number off by
            at most 2^-8 of itself; or ``"int8"``, about a quarter, each off by at most 1/127 of the largest
            of 256 neighbours, with no bias. Differences of means shrink with the learning rate, the errors
            do not, so that a coarse encoding fits the early part of a run.
        memory_budget_mib: Upper bound in MiB for window means, snapshots and work buffers together;
            fewer windows are kept to stay inside, and an error says so where even the least does not fit.
            0 takes half of what the device, or the host's memory, has free when the run starts (F66).
    """

    window: int = attrs.field(default=10, validator=between(1))
    windows: int = attrs.field(default=3, validator=between(2))
    dtype: str = attrs.field(default="float32", validator=choice("float32", "bfloat16", "int8"))
    memory_budget_mib: float = attrs.field(default=0.0, validator=between(0.0))


@attrs.frozen(kw_only=True)
class MemoryConfig:
    """Table ``[memory]``: what leaves an accelerator's memory; results are the same bit for bit.

    Attributes:
        snapshots: ``"device"`` keeps the copies that rollbacks need beside the model; ``"host"`` in pinned
            host memory, at the price of a transfer per trial.
        history: ``"device"`` keeps window means beside the model; ``"host"`` copies each into pinned host
            memory while training goes on, and back when a predictor or a verdict reads it. More windows
            fit into ``history.memory_budget_mib`` then, which bounds the device's memory.
        offload_optimizer: In Predict phases of mode ``"step"``, which need no optimizer, its state waits in
            host memory (F63).
    """

    snapshots: str = attrs.field(default="device", validator=choice("device", "host"))
    history: str = attrs.field(default="device", validator=choice("device", "host"))
    offload_optimizer: bool = False


@attrs.frozen(kw_only=True)
class GroupsConfig:
    """Table ``[groups]``: predicted changes per kind of parameter (F86).

    Attributes:
        matrix_scale: Multiplier of the predicted change for weight matrices and kernels.
        embedding_scale: The same for embeddings.
        norm_scale: The same for normalisation scales and shifts.
        bias_scale: The same for biases.
        max_relative_jump: Largest norm of one predicted change over the norm of the weights, per group;
            a longer one is shortened.
        max_relative_repeat: The same for the whole model and a repetition that follows every step, whose
            direction is kept.
    """

    matrix_scale: float = attrs.field(default=1.0, validator=between(0.0))
    embedding_scale: float = attrs.field(default=1.0, validator=between(0.0))
    norm_scale: float = attrs.field(default=1.0, validator=between(0.0))
    bias_scale: float = attrs.field(default=1.0, validator=between(0.0))
    max_relative_jump: float = attrs.field(default=0.5, validator=between(0.0, low_open=True))
    max_relative_repeat: float = attrs.field(default=0.02, validator=between(0.0, low_open=True))


@attrs.frozen(kw_only=True)
class AverageConfig:
    """Table ``[average]``: the running mean of the weights as a second read-out (F85).

    Attributes:
        enabled: Keep the mean; costs one more copy of the weights and a share of a pass per step.
        share: Memory of the mean as a share of the real steps so far.
        max_memory: Longest memory, in real steps.
        every: Real steps between the samples that enter the mean.
        decide_growth: Whether the run is read out by its weights or by their mean is decided anew where it is
            this many times as long as at the last decision.
    """

    enabled: bool = False
    share: float = attrs.field(default=0.1, validator=between(0.0, 1.0, low_open=True))
    max_memory: float = attrs.field(default=100.0, validator=between(1.0))
    every: int = attrs.field(default=4, validator=between(1))
    decide_growth: float = attrs.field(default=2.0, validator=between(1.0))
