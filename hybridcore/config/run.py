"""Tables of the run: length and place, task, records and checkpoints."""

from __future__ import annotations

from typing import Any

import attrs

from hybridcore.config.validators import between, choice

__all__ = ["CheckpointConfig", "MetricsConfig", "RunConfig", "TaskConfig"]


@attrs.frozen(kw_only=True)
class RunConfig:
    """Table ``[run]``.

    Attributes:
        steps: Real optimizer steps (those with a backward pass).
        seed: Seeds initial weights, data order and the engine.
        framework: Registry name of the adapter.
        device: Device name in the framework's own words.
        dtype: Precision of the built-in tasks' weights and data: ``"float32"`` or ``"float64"``; the NumPy
            reference computes in float64 always. Where all weights are float64, so are histories, jumps and
            snapshots. JAX needs the environment variable ``JAX_ENABLE_X64=1`` for it.
        evaluate_every: Real steps between evaluations on the validation set.
        directory: Folder that receives one sub-folder per run.
    """

    steps: int = attrs.field(default=1000, validator=between(1))
    seed: int = attrs.field(default=0, validator=between(0, 2**31 - 1))
    framework: str = "torch"
    device: str = "cpu"
    dtype: str = attrs.field(default="float32", validator=choice("float32", "float64"))
    evaluate_every: int = attrs.field(default=50, validator=between(1))
    directory: str = "runs"


@attrs.frozen(kw_only=True)
class TaskConfig:
    """Table ``[task]``: `name` picks the task; all other keys are the task's own options.

    Attributes:
        name: Registry name, or ``module:function`` of your own.
        options: The table's other keys, checked by the task.
    """

    name: str = "digits-mlp"
    options: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class MetricsConfig:
    """Table ``[metrics]``.

    Attributes:
        step_every: A step record is written every this many real steps; phases, jumps, verdicts and
            evaluations are always written.
        trace: Log each decision with its reason at INFO level.
    """

    step_every: int = attrs.field(default=1, validator=between(1))
    trace: bool = False


@attrs.frozen(kw_only=True)
class CheckpointConfig:
    """Table ``[checkpoint]``: the whole run on disk, to go on with ``hybridcore run --resume`` (F53, F54).

    Attributes:
        every: Batches between two checkpoints; 0 writes none.
        keep: Checkpoints kept; the oldest go.
        directory: Folder in which each run gets a folder for its checkpoints; ``checkpoints`` in the run's
            own folder if empty.
        asynchronous: Write in a thread beside the training, from a copy of the state in host memory.
    """

    every: int = attrs.field(default=0, validator=between(0))
    keep: int = attrs.field(default=3, validator=between(1))
    directory: str = ""
    asynchronous: bool = True
