"""Roll-out of an ensemble in one launch."""

from __future__ import annotations

from types import ModuleType

from hybridcore.layout import Array
from hybridcore.protocols import Ensemble
from hybridcore_cupy.arrays import open_arrays
from hybridcore_cupy.device import kernel, launch
from hybridcore_cupy.passes import Pass
from hybridcore_cupy.structs import Rollout

__all__ = ["ROWS", "rollout"]

ROWS = 4
"""Rows of the batch per block, as in rollout.cu."""

SHARED_BYTES = 48 * 1024
"""What every device gives a block without being asked."""


def rollout(
    ensemble: Ensemble, hidden: Array, actions: Array, output: Array, xp: ModuleType
) -> tuple[Array, Array] | None:
    """Outputs and last state; None where a block's states do not fit into shared memory.

    See `hybridcore.protocols.KernelSet.rollout` for shapes.
    """
    members, rows, width = (int(n) for n in hidden.shape)
    steps, made = int(actions.shape[0]), int(output.shape[2])
    seen = made + int(actions.shape[2])
    shared = 4 * ROWS * (seen + 2 * width)
    if shared > SHARED_BYTES or not members * rows * steps or not made:
        return None
    with Pass(open_arrays(hidden, xp)) as job:
        arrays = job.arrays
        outputs, last = arrays.empty((steps, members, rows, made)), arrays.empty((members, rows, width))
        block = Rollout()
        for name in ("inputs", "recurrent", "input_bias", "recurrent_bias", "readout", "readout_bias"):
            setattr(block, name, arrays.pointer(getattr(ensemble, name)))
        given = {"hidden": hidden, "actions": actions, "output": output, "outputs": outputs, "last": last}
        for name, array in given.items():
            setattr(block, name, arrays.pointer(array))
        sizes = {"members": members, "rows": rows, "steps": steps}
        for name, size in (sizes | {"width": width, "seen": seen, "made": made}).items():
            setattr(block, name, size)
        grid = (-(-rows // ROWS), members)
        launch(kernel("rollout", "rollout"), grid, block, arrays.stream, arrays.device, shared)
        return arrays.give(outputs), arrays.give(last)
